"""The picture of ConfusionLogger: the matrix of a classifier that has seen few digits, and of one that saw more."""

from matplotlib.figure import Figure

from lightning_vision.callbacks.evaluation._sheets import confusion_sheet

from ._nearest_mean import beside_each_other, told_by_means

__all__ = ["draw"]


def draw() -> Figure:
    """Nearest means of the first 30 and of the first 300 digits, on the other 1,497."""
    return beside_each_other([confusion_sheet(told_by_means(learnt, 0)) for learnt in (30, 300)])
