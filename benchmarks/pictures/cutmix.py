"""Eight digits, their partners and what CutMix makes of them, the share of own pixels under each."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_vision.callbacks import CutMix

from ._digits import eight_digits, sheet

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with alpha = 1 and a box a sample, outlined."""
    images, labels = eight_digits()
    cutmix = CutMix(alpha=1.0, per_sample=True)
    drawn = cutmix.draw(images.shape, np.random.default_rng(2816))
    mixed = cutmix.mix(images, drawn).images
    figure = sheet(images, labels, drawn.partner, mixed, drawn.lam)
    for axis, (top, bottom, left, right) in zip(figure.axes[16:], drawn.box.tolist(), strict=True):
        outline = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="tab:orange")
        axis.add_patch(outline)
    return figure
