"""The picture of MistakesLogger: what a classifier that compares digits with their means is most sure of and wrong."""

from matplotlib.figure import Figure

from lightning_vision.callbacks.evaluation._sheets import mistake_sheet

from ._nearest_mean import beside_each_other, told_by_means

__all__ = ["draw"]


def draw() -> Figure:
    """Nearest means of the first 300 digits, on the other 1,497."""
    return beside_each_other([mistake_sheet(told_by_means(300, 18))])
