"""What a ramp of the weight decay adds to a step."""

from functools import partial

import torch

from lightning_vision.callbacks import WeightDecayRamp

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, take_turns

__all__ = ["rows"]


class _Decaying(Plain):
    """With an optimizer that has a weight decay to move."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.04)


def rows(quick: bool) -> list[Row]:
    """Train a small network with and without.

    Args:
        quick: One repetition of few steps.
    """
    return [_row(batch_size, quick) for batch_size in (8, 32, 128)]


def _row(batch_size: int, quick: bool) -> Row:
    steps, repetitions, warmup = (10, 1, 0) if quick else (50, 15, 1)
    batches = batches_of(batch_size, steps)

    def module() -> Plain:
        torch.manual_seed(0)
        return _Decaying(cnn())

    sides = {"none": fitting(module, batches, 1), "ours": fitting(module, batches, 1, partial(WeightDecayRamp))}
    times = take_turns(sides, repetitions, warmup)
    none, ours = ([seconds / steps for seconds in times[side]["cpu"]] for side in sides)
    return Row.slowdown(f"a step of {batch_size} images with `WeightDecayRamp`", "without", ours, none, "cpu")
