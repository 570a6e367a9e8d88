"""Eight digits, the mixtures that RegMixup trains on beside them, and how near one half their shares are."""

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import beta
from sklearn.datasets import load_digits

from lightning_vision.callbacks import RegMixup

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: the images as they are and the mixtures below them, one batch of 16; right, the density of lambda."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:8]).float().view(8, 1, 8, 8) / 16
    method = RegMixup(alpha=10.0, per_sample=True)
    drawn = method.draw(images.shape, np.random.default_rng(2))
    mixed = method.mix(images, drawn).images
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1))
    axes = left.subplots(2, 8)
    for row, shown in zip(axes, (images, mixed), strict=True):
        for axis, image in zip(row, shown[:, 0], strict=True):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_ylabel("plain, weight 1")
    axes[1, 0].set_ylabel("mixed, weight eta")
    for own, axis, other, share in zip(labels[:8], axes[1], labels[drawn.partner], drawn.lam.tolist(), strict=True):
        axis.set_xlabel(f"{share:.2f} of {own}\n{1 - share:.2f} of {other}")
    axis, grid = right.subplots(), np.linspace(0.001, 0.999, 400)
    for alpha, name in ((0.2, "MixUp, alpha 0.2"), (10.0, "alpha 10"), (20.0, "alpha 20")):
        axis.plot(grid, beta.pdf(grid, alpha, alpha), label=name)
    axis.set(xlabel="lambda", ylabel="density", ylim=(0, 8), xlim=(0, 1))
    axis.legend(fontsize="small", frameon=False)
    return figure
