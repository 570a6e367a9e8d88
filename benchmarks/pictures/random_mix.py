"""Eight batches of one digit and its partner, each mixed by the mixer that was drawn for it."""

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from lightning_vision.callbacks import CutMix, MixUp, RandomMix

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with its mixer and the own share under it; the last two epochs are plain."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:2]).float().view(2, 1, 8, 8) / 16
    mix = RandomMix([MixUp(alpha=1.0), CutMix(alpha=1.0)], weights=[1, 1], off_epoch=6)
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(3, 8)
    for column, (own, other, mixed) in enumerate(axes.T):
        drawn = mix.draw(images.shape, np.random.default_rng((6148, 0, column)))
        found = mix.mix(images, drawn)
        used = mix.mixes_in(column)
        share = float(found.lam) if used and int(found.partner[0]) == 1 else 1.0
        shown = found.images if used else images
        for axis, image in zip((own, other, mixed), (images[0], images[1], shown[0]), strict=True):
            axis.imshow(image[0], cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        own.set_title(f"epoch {column}", fontsize="medium")
        name = type(mix.mixers[drawn.mixer]).__name__ if used else "off"
        mixed.set_xlabel(f"{name}\n{share:.2f} of {labels[0]}")
    for name, row in zip(("own", "partner's", "mixed"), axes, strict=True):
        row[0].set_ylabel(name)
    return figure
