"""What warm restarts add to a step, against torch's schedule as Lightning drives it."""

from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from lightning_vision.callbacks import WarmRestarts

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]

T_0 = 10


def rows(quick: bool) -> list[Row]:
    """Train a small network with a restart after 10, 30, 70, ... steps.

    Args:
        quick: One repetition of few steps.
    """
    steps, repetitions, warmup = (T_0, 1, 0) if quick else (150, 21, 1)
    batches = batches_of(8, steps)

    def module(scheduled: bool) -> Plain:
        torch.manual_seed(0)
        return Plain(cnn(), partial(CosineAnnealingWarmRestarts, T_0=T_0, T_mult=2) if scheduled else None)

    sides = {
        "none": fitting(partial(module, False), batches, 1),
        "torch": fitting(partial(module, True), batches, 1),
        "ours": fitting(partial(module, False), batches, 1, partial(WarmRestarts, t_0=T_0, t_mult=2, interval="step")),
    }
    times = take_turns(sides, repetitions, warmup)
    none, peer, ours = ([seconds / steps for seconds in times[side]["cpu"]] for side in sides)
    return [
        Row.slowdown("a step with `WarmRestarts`", "with `CosineAnnealingWarmRestarts`", ours, peer, "cpu"),
        Row.slowdown("a step with `WarmRestarts`", "without a schedule", ours, none, "cpu"),
        Row.slowdown("(a step with `CosineAnnealingWarmRestarts`)", "without a schedule", peer, none, "cpu"),
    ]
