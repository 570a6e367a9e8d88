"""What watching for a collapse costs: its number beside lightly's, and a validation with and without it."""

from tempfile import TemporaryDirectory

import torch
from lightly.utils.debug import std_of_l2_normalized
from lightning.pytorch import LightningModule

from lightning_vision.callbacks import CollapseAlarm
from lightning_vision.callbacks.hooks.probing import Read

from .probed import Featured, split
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import validating

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Judge 5,000 images of 512 features, and validate `resnet20_cifar` on ten batches of 64.

    Args:
        quick: One repetition of 300 images and two batches.
    """
    features = torch.randn(300 if quick else 5000, 512, generator=torch.Generator().manual_seed(0))
    alarm, read = CollapseAlarm(), Read(features, None)
    batches = split(quick)
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "ours": unprepared(lambda: alarm.measure(LightningModule(), read, None)),
            "values": unprepared(lambda: torch.linalg.svdvals(features.double())),
            "lightly": unprepared(lambda: std_of_l2_normalized(features)),
            "plain": validating(batches, folder, kind=Featured),
            "watched": validating(batches, folder, CollapseAlarm(), kind=Featured),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what = f"spread and rank of {len(features):,} images, 512 features"
    return [
        Row.slowdown(
            what, "the spread alone, lightly's `std_of_l2_normalized`", times["ours"], times["lightly"], "cpu"
        ),
        Row.slowdown(what, "torch's singular values", times["ours"], times["values"], "cpu", "<= 1.05"),
        Row.slowdown("a validation", "without it", times["watched"], times["plain"], "cpu"),
    ]
