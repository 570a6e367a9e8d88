"""What cyclical rates and momentum add to a step, against torch's schedule as Lightning drives it."""

from functools import partial

import torch
from torch.optim.lr_scheduler import CyclicLR

from lightning_vision.callbacks import CyclicalLR

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]

UP = 10  # optimizer steps


def rows(quick: bool) -> list[Row]:
    """Train a small network through triangles of 20 steps, momentum moving the other way.

    Args:
        quick: One repetition of few steps.
    """
    steps, repetitions, warmup = (2 * UP, 1, 0) if quick else (160, 21, 1)
    batches = batches_of(8, steps)

    def module(scheduled: bool) -> Plain:
        torch.manual_seed(0)
        theirs = partial(CyclicLR, base_lr=0.0025, max_lr=0.01, step_size_up=UP)
        return Plain(cnn(), theirs if scheduled else None)

    sides = {
        "none": fitting(partial(module, False), batches, 1),
        "torch": fitting(partial(module, True), batches, 1),
        "ours": fitting(partial(module, False), batches, 1, partial(CyclicalLR, step_size_up=UP)),
    }
    times = take_turns(sides, repetitions, warmup)
    none, peer, ours = ([seconds / steps for seconds in times[side]["cpu"]] for side in sides)
    return [
        Row.slowdown("a step with `CyclicalLR`", "with `CyclicLR`", ours, peer, "cpu"),
        Row.slowdown("a step with `CyclicalLR`", "without a schedule", ours, none, "cpu"),
        Row.slowdown("(a step with `CyclicLR`)", "without a schedule", peer, none, "cpu"),
    ]
