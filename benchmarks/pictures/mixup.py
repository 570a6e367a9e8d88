"""Eight digits, their partners and what MixUp makes of them, the own share under each."""

import numpy as np
from matplotlib.figure import Figure

from lightning_vision.callbacks import MixUp

from ._digits import eight_digits, sheet

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with alpha = 1 and a share a sample."""
    images, labels = eight_digits()
    mixup = MixUp(alpha=1.0, per_sample=True)
    drawn = mixup.draw(images.shape, np.random.default_rng(1669))
    mixed = mixup.mix(images, drawn).images
    return sheet(images, labels, drawn.partner, mixed, drawn.lam)
