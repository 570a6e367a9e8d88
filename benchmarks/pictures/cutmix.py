"""Eight digits, their partners and what CutMix makes of them, the share of own pixels under each."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lightning_vision.callbacks import CutMix

from ._digits import sheet

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with alpha = 1 and a box a sample, outlined."""
    figure, drawn = sheet(CutMix, seed=2816)
    for axis, (top, bottom, left, right) in zip(figure.axes[16:], drawn.box.tolist(), strict=True):
        outline = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="tab:orange")
        axis.add_patch(outline)
    return figure
