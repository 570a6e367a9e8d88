"""Eight digits, their partners and what MixUp makes of them, the own share under each."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import MixUp

from ._digits import sheet

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, mixture with alpha = 1 and a share a sample."""
    figure, _ = sheet(MixUp, seed=1669)
    return figure
