"""What the pictures of reports share: digits that are told by their nearest mean, and sheets side by side."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lightning_vision.callbacks.evaluation._tally import ClassTally

from ._trained_digits import digits

__all__ = ["beside_each_other", "told_by_means"]

SEEN = 300


def told_by_means(learnt: int, worst: int) -> dict[str, Any]:
    """The report of the digits from the 301st on, told by the nearest of the ten means of the first `learnt`."""
    images, target = digits()
    flat = images.flatten(1)
    means = torch.stack([flat[:learnt][target[:learnt] == label].mean(0) for label in range(10)])
    tally = ClassTally(worst, None, ([0.0], [1.0]))
    tally.add(images[SEEN:], -(torch.cdist(flat[SEEN:], means) ** 2), target[SEEN:])
    report = tally.report()
    assert report is not None
    return report


def beside_each_other(sheets: list[NDArray[np.uint8]]) -> Figure:
    """Pictures of one height side by side, ten inches wide."""
    width = sum(it.shape[1] / it.shape[0] for it in sheets)
    figure = Figure(figsize=(10, 10 / width))
    left = 0.0
    for sheet in sheets:
        share = sheet.shape[1] / sheet.shape[0] / width
        axes = figure.add_axes((left, 0, share, 1))
        axes.imshow(sheet)
        axes.set_axis_off()
        left += share
    return figure
