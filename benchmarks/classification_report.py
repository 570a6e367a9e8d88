"""What a report of every validation costs: a validation with it against one without, and its pictures."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from lightning_vision.callbacks import ClassificationReport
from lightning_vision.callbacks.evaluation._tally import ClassTally

from .fits import Batches, batches_of
from .side_by_side import Row, Side, take_turns
from .validations import validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Validate `resnet20_cifar` on batches of 64 with and without; only count; only write.

    Args:
        quick: One repetition of two batches.
    """
    batches = batches_of(64, 2 if quick else 30)
    generator = torch.Generator().manual_seed(0)
    answers = torch.randn(2 if quick else 20, 64, 1000, generator=generator)
    target = torch.randint(1000, (64,), generator=generator)
    images = torch.randn(64, 3, 224, 224, generator=generator)
    silent = ClassificationReport(monitor=None)
    # Files are written once a fit, not once a validation.
    silent.write = _write_nothing  # type: ignore[method-assign]  # on purpose, on this object alone
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        sides: dict[str, Side] = {
            "plain": validating(batches, folder),
            "ours": validating(batches, folder, silent),
            "matrix": lambda: _counting(answers, target),
            "tally": lambda: _tallying(images, answers, target),
            "write": lambda: _writing(batches, Path(folder)),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    count = "counting batches of 64, 1,000 classes, 224 pixels, and keeping mistakes"
    return [
        Row.slowdown("a validation with the report", "without it", times["ours"], times["plain"], "cpu", "<= 1.05"),
        Row.slowdown(count, "torchmetrics' confusion matrix alone", times["tally"], times["matrix"], "cpu"),
        Row("writing table and pictures, once a fit", "", times["write"], "cpu"),
    ]


def _write_nothing(*_: Any) -> None:
    """Stands where a report is written, so that what is timed is the validation."""


def _counting(answers: Tensor, target: Tensor) -> Callable[[], None]:
    matrix = MulticlassConfusionMatrix(1000, validate_args=False)

    def run() -> None:
        for logits in answers:
            matrix.update(logits, target)

    return run


def _tallying(images: Tensor, answers: Tensor, target: Tensor) -> Callable[[], None]:
    tally = ClassTally(24, None, None)

    def run() -> None:
        for logits in answers:
            tally.add(images, logits, target)

    return run


def _writing(batches: Batches, folder: Path) -> Callable[[], None]:
    tally = ClassTally(24, None, None)
    for image, target in batches:
        tally.add(image, torch.eye(10)[(target + 1) % 10], target)
    report = tally.report()
    assert report is not None
    return lambda: ClassificationReport().write(report, "val", "validation", folder)
