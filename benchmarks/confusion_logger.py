"""What a confusion matrix of every validation costs, beside one extra batch and beside torchmetrics' own plot."""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_vision.callbacks import ConfusionLogger
from lightning_vision.callbacks.evaluation._sheets import confusion_sheet
from lightning_vision.callbacks.evaluation._tally import ClassTally

from .fits import Batches, batches_of
from .side_by_side import Row, Side, take_turns
from .validations import one_batch, validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Validate `resnet20_cifar` on batches of 64 with and without; sum up and draw.

    Args:
        quick: One repetition of two batches.
    """
    batches = batches_of(64, 2 if quick else 10)
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": validating(batches, folder),
            "ours": validating(batches, folder, ConfusionLogger()),
            "batch": one_batch(batches),
            "draw": lambda: _drawing(batches),
            "plot": lambda: _plotting(batches),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what, plot = "the matrix of 10 classes as pixels", "torchmetrics' `MulticlassConfusionMatrix.plot`"
    return [
        Row.slowdown("a validation of 10 batches with the logger", "without it", times["ours"], times["plain"], "cpu"),
        Row.slowdown(what, "one batch of the validation", times["draw"], times["batch"], "cpu", "<= 1.00"),
        Row.slowdown(what, plot, times["draw"], times["plot"], "cpu", "<= 1.00"),
    ]


def _drawing(batches: Batches) -> Callable[[], Any]:
    tally = ClassTally(0, None, None)
    for image, target in batches:
        tally.add(image, torch.eye(10)[(target + image[:, 0, 0, 0].long()) % 10], target)

    def run() -> None:
        report = tally.report()
        assert report is not None
        confusion_sheet(report)

    return run


def _plotting(batches: Batches) -> Callable[[], Any]:
    matrix = MulticlassConfusionMatrix(10)
    for image, target in batches:
        matrix.update(torch.eye(10)[(target + image[:, 0, 0, 0].long()) % 10], target)

    def run() -> None:
        figure, _ = matrix.plot()
        assert figure is not None
        FigureCanvasAgg(figure).draw()

    return run
