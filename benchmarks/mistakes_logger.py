"""What a sheet of mistakes of every validation costs, beside one extra batch and beside a figure of many axes."""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_vision.callbacks import MistakesLogger
from lightning_vision.callbacks.evaluation._sheets import captions, mistake_sheet
from lightning_vision.callbacks.evaluation._tally import ClassTally

from .fits import Batches, batches_of
from .side_by_side import Row, Side, take_turns
from .validations import one_batch, validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Validate `resnet20_cifar` on batches of 64 with and without; sum up and draw 24 mistakes.

    Args:
        quick: One repetition of two batches.
    """
    batches = batches_of(64, 2 if quick else 10)
    report = _tallied(batches).report()
    assert report is not None
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": validating(batches, folder),
            "ours": validating(batches, folder, MistakesLogger()),
            "batch": one_batch(batches),
            "draw": lambda: lambda: mistake_sheet(_tallied(batches[:1]).report() or report),
            "sheet": lambda: lambda: mistake_sheet(report),
            "axes": lambda: _axes(report),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = "24 mistakes with their words as pixels"
    counted = "tallying a batch, summing up and drawing"
    return [
        Row.slowdown("a validation of 10 batches with the logger", "without it", times["ours"], times["plain"], "cpu"),
        Row.slowdown(counted, "one batch of the validation", times["draw"], times["batch"], "cpu", "<= 1.00"),
        Row.slowdown(what, "a matplotlib `Figure` of 24 axes", times["sheet"], times["axes"], "cpu", "<= 1.00"),
    ]


def _tallied(batches: Batches) -> ClassTally:
    tally = ClassTally(24, None, None, matrix=False)
    for image, target in batches:
        tally.add(image, 5 * torch.eye(10)[(target + 1) % 10], target)
    return tally


def _axes(report: dict[str, Any]) -> Callable[[], Any]:
    def run() -> None:
        figure = Figure(figsize=(7.5, 6))
        shown = zip(figure.subplots(4, 6).flat, report["images"], captions(report), strict=True)
        for axes, image, words in shown:
            axes.imshow(image.permute(1, 2, 0))
            axes.set_title(words, fontsize=8)
            axes.set_axis_off()
        FigureCanvasAgg(figure).draw()

    return run
