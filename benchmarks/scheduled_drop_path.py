"""What scheduled drop paths add to a step, beside timm's with a fixed rate and beside none."""

from collections.abc import Callable

import torch
from timm.layers import DropPath

from lightning_vision.backbones import create
from lightning_vision.callbacks import ScheduledDropPath

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Fits of ResNet-20 on images of 32 pixels.

    Args:
        quick: One repetition of few and small batches.
    """
    steps = 2 if quick else 12
    batches = batches_of(8 if quick else 32, steps)

    def module(rate: float) -> Callable[[], Plain]:
        def make() -> Plain:
            torch.manual_seed(0)
            network = create("resnet20_cifar", num_classes=10, in_channels=3, drop_path_rate=rate)
            assert any(isinstance(it, DropPath) for it in network.modules()) == (rate > 0)
            return Plain(network)

        return make

    sides: dict[str, Side] = {
        "none": fitting(module(0.0), batches, 1),
        "fixed": fitting(module(0.15), batches, 1),
        "ours": fitting(module(0.15), batches, 1, lambda: ScheduledDropPath(final=0.3)),
        "off": fitting(module(0.15), batches, 1, lambda: ScheduledDropPath(final="built")),
    }
    times = {
        name: [seconds / steps for seconds in clocks["cpu"]]
        for name, clocks in take_turns(sides, *(1, 0) if quick else (15, 1)).items()
    }
    what = "a step of ResNet-20 with `ScheduledDropPath`"
    return [
        Row.slowdown(what, "timm's `DropPath` at a fixed rate", times["ours"], times["fixed"], "cpu", "<= 1.05"),
        Row.slowdown(what, "no drop paths", times["ours"], times["none"], "cpu"),
        Row.slowdown(f"{what}, switched off", "timm's `DropPath` at a fixed rate", times["off"], times["fixed"], "cpu"),
    ]
