"""The picture of ClassificationReport: both of its sheets for a classifier that compares digits with their means."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from lightning_vision.callbacks.evaluation._sheets import confusion_sheet, mistake_sheet
from lightning_vision.callbacks.evaluation._tally import ClassTally

__all__ = ["draw"]

LEARNT, WORST = 300, 18


def draw() -> Figure:
    """Means of the first 300 digits; the other 1,497 are the nearest mean's."""
    pixels, labels = load_digits(return_X_y=True)
    images, target = torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels)
    means = torch.stack([images[:LEARNT][target[:LEARNT] == label].mean(0) for label in range(10)])
    tally = ClassTally(WORST, None, ([0.0], [1.0]))
    tally.add(images[LEARNT:].view(-1, 1, 8, 8), -(torch.cdist(images[LEARNT:], means) ** 2), target[LEARNT:])
    report = tally.report()
    assert report is not None
    sheets = [confusion_sheet(report), mistake_sheet(report)]
    figure = Figure(figsize=(10, 4))
    width = sum(it.shape[1] / it.shape[0] for it in sheets)
    left = 0.0
    for sheet in sheets:
        share = sheet.shape[1] / sheet.shape[0] / width
        axes = figure.add_axes((left, 0, share, 1))
        axes.imshow(sheet)
        axes.set_axis_off()
        left += share
    return figure
