"""What the pictures of MixUp and CutMix share: eight digits and the sheet on which a mix of them is shown."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_vision.callbacks.hooks.targets import Targets

__all__ = ["sheet"]


def _eight_digits() -> tuple[Tensor, Tensor]:
    """The first digits 0 to 7 of scikit-learn: float `(8, 1, 8, 8)` in 0..1 and int64 `(8,)`."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels[:8]).float().view(8, 1, 8, 8) / 16, torch.from_numpy(labels[:8])


def sheet(kind: type[Targets], seed: int) -> tuple[Figure, Any]:
    """Three rows of eight: own images, partners, mixtures by `kind` with what their labels are.

    Args:
        kind: The callback's class; it mixes with alpha = 1 and a share a sample.
        seed: Of its draws.

    Returns:
        The figure, its axes row by row, and what was drawn.
    """
    images, labels = _eight_digits()
    method = kind(alpha=1.0, per_sample=True)
    drawn = method.draw(images.shape, np.random.default_rng(seed))
    mixed = method.mix(images, drawn).images
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(3, 8)
    for row, shown in enumerate((images, images[drawn.partner], mixed)):
        for column, image in enumerate(shown[:, 0]):
            axes[row, column].imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
    for name, row in zip(("own", "partner's", "mixed"), axes, strict=True):
        row[0].set_ylabel(name)
    for column, axis in enumerate(axes[2]):
        own, other, share = int(labels[column]), int(labels[drawn.partner[column]]), float(drawn.lam[column])
        axis.set_xlabel(f"{share:.2f} of {own}\n{1 - share:.2f} of {other}")
    return figure, drawn
