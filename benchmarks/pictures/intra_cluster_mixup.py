"""Eight digits, their partners from the same cluster and what IntraClusterMixup makes of them."""

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from lightning_vision.callbacks import IntraClusterMixup
from lightning_vision.callbacks.mixing.intra_cluster_mixup import cluster_centroids, nearest_centroid

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with a share a sample, of 40 digits in ten clusters those of four."""
    pixels, classes = load_digits(return_X_y=True)
    every = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images, labels = every[:40], classes[:40]
    method = IntraClusterMixup(alpha=1.0, per_sample=True)
    method.prepared = cluster_centroids(every.flatten(1), 10)
    clusters = nearest_centroid(images.flatten(1), method.prepared)
    drawn = method.draw(images.shape, np.random.default_rng(2))
    mix = method.mix(images, drawn)
    mates = [it for it in clusters.argsort(stable=True).tolist() if mix.partner[it] != it]
    # Two of each of the first four clusters that have as many.
    kept = {
        cluster: [it for it in mates if clusters[it] == cluster][:2] for cluster in clusters[mates].unique().tolist()
    }
    shown = [it for pair in kept.values() if len(pair) == 2 for it in pair][:8]
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(3, 8)
    for row, rows in enumerate((images, images[mix.partner], mix.images)):
        for axis, number in zip(axes[row], shown, strict=True):
            axis.imshow(rows[number, 0], cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    for name, row in zip(("own", "partner's", "mixed"), axes, strict=True):
        row[0].set_ylabel(name)
    for column, number in enumerate(shown):
        own, other, share = labels[number], labels[mix.partner[number]], float(drawn.lam[number])
        axes[0, column].set_title(f"cluster {int(clusters[number])}", fontsize=9)
        axes[2, column].set_xlabel(f"{share:.2f} of {own}\n{1 - share:.2f} of {other}")
    return figure
