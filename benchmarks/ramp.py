"""What ramps of numbers add to a step, beside the same lines written into the module."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_vision.callbacks import Ramp

from .fits import Plain, batches_of, fitting
from .logging_tax import cnn
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


class _Decaying(Plain):
    """With an optimizer that has a weight decay to move."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.04)


class _ByHand(_Decaying):
    """Moves its weight decay itself, as its author would write it."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        share = self.trainer.global_step / self.trainer.estimated_stepping_batches
        for group in self.trainer.optimizers[0].param_groups:
            group["weight_decay"] = 0.04 + 0.36 * share


def rows(quick: bool) -> list[Row]:
    """Train a small network with a ramp of the weight decay, with one written by hand, and without.

    Args:
        quick: One repetition of few steps.
    """
    return [row for batch_size in (8, 128) for row in _rows(batch_size, quick)]


def _rows(batch_size: int, quick: bool) -> list[Row]:
    steps, repetitions, warmup = (10, 1, 0) if quick else (50, 15, 1)
    batches = batches_of(batch_size, steps)

    def made(kind: Callable[..., Plain]) -> Callable[[], Plain]:
        def make() -> Plain:
            torch.manual_seed(0)
            return kind(cnn())

        return make

    sides: dict[str, Side] = {
        "none": fitting(made(_Decaying), batches, 1),
        "hand": fitting(made(_ByHand), batches, 1),
        "ours": fitting(made(_Decaying), batches, 1, lambda: Ramp("optimizer.weight_decay", end=0.4)),
    }
    times = take_turns(sides, repetitions, warmup)
    none, hand, ours = ([seconds / steps for seconds in times[side]["cpu"]] for side in sides)
    what = f"a step of {batch_size} images with `Ramp`"
    return [
        Row.slowdown(what, "without", ours, none, "cpu"),
        Row.slowdown(what, "the same lines in the module", ours, hand, "cpu"),
    ]
