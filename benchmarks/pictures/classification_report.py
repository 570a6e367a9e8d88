"""The picture of ClassificationReport: both of its sheets for a classifier that compares digits with their means."""

from matplotlib.figure import Figure

from lightning_vision.callbacks.evaluation._sheets import confusion_sheet, mistake_sheet

from ._nearest_mean import beside_each_other, told_by_means

__all__ = ["draw"]


def draw() -> Figure:
    """Means of the first 300 digits; the other 1,497 are the nearest mean's."""
    report = told_by_means(300, 18)
    return beside_each_other([confusion_sheet(report), mistake_sheet(report)])
