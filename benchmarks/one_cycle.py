"""What a single cycle of rate and momentum adds to a step, against torch's schedule; and what an estimate adds."""

from functools import partial

import torch
from torch.optim.lr_scheduler import OneCycleLR

from lightning_vision.callbacks import OneCycle
from lightning_vision.callbacks.schedules.one_cycle import hessian_free_rate

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train a small network through one cycle, and estimate its best rate from three sets of weights.

    Args:
        quick: One repetition of few steps.
    """
    steps, repetitions, warmup = (20, 1, 0) if quick else (160, 21, 1)
    batches = batches_of(8, steps)

    def module(scheduled: bool) -> Plain:
        torch.manual_seed(0)
        # It counts a call more than there are steps.
        theirs = partial(OneCycleLR, max_lr=0.01, total_steps=steps + 1)
        return Plain(cnn(), theirs if scheduled else None)

    sides = {
        "none": fitting(partial(module, False), batches, 1),
        "torch": fitting(partial(module, True), batches, 1),
        "ours": fitting(partial(module, False), batches, 1, OneCycle),
    }
    times = take_turns(sides, repetitions, warmup)
    none, peer, ours = ([seconds / steps for seconds in times[side]["cpu"]] for side in sides)
    generator = torch.Generator().manual_seed(0)
    first, second, third = ([torch.randn(1_000_000, generator=generator)] for _ in range(3))
    looks = take_turns(
        {
            "eq 8": lambda: (
                lambda: 0.1 * (second[0] - first[0]).abs().sum() / (2 * second[0] - first[0] - third[0]).abs().sum()
            ),
            "ours": lambda: lambda: hessian_free_rate(first, second, third, [0.1]),
        },
        repetitions,
        warmup,
    )
    return [
        Row.slowdown("a step with `OneCycle`", "with `OneCycleLR`", ours, peer, "cpu"),
        Row.slowdown("a step with `OneCycle`", "without a schedule", ours, none, "cpu"),
        Row.slowdown("(a step with `OneCycleLR`)", "without a schedule", peer, none, "cpu"),
        Row.slowdown(
            "`hessian_free_rate` of a million weights",
            "Eq. 8 in one line of torch",
            looks["ours"]["cpu"],
            looks["eq 8"]["cpu"],
            "cpu",
        ),
    ]
