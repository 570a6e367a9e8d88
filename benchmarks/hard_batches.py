"""What training again on the hardest batches costs, and what choosing among many batches does."""

from functools import partial

import numpy as np
import torch

from lightning_vision.callbacks import HardBatches
from lightning_vision.callbacks.curation.hard_batches import hardest_batches

from .fits import epochs_on_digits
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on digits with and without; choose among the batches of 50,000 samples, and with numpy.

    Args:
        quick: One repetition of two epochs.
    """
    epochs, repetitions, warmup = (2, 1, 0) if quick else (8, 7, 1)
    sides = {
        "none": epochs_on_digits(epochs),
        "replay": epochs_on_digits(epochs, partial(HardBatches, network="network")),
        "select": epochs_on_digits(epochs, partial(HardBatches, mode="select", network="network")),
    }
    times = take_turns(sides, repetitions, warmup)
    losses = torch.rand(50_000, generator=torch.Generator().manual_seed(0))
    batches = torch.arange(50_000) // 128

    def numpys() -> np.ndarray:
        which = batches.numpy()
        means = np.bincount(which, losses.numpy()) / np.bincount(which)
        hard = np.zeros(len(means), bool)
        hard[np.argpartition(means, -118)[-118:]] = True
        return np.flatnonzero(hard[which])

    choices = {"ours": unprepared(lambda: hardest_batches(losses, batches.float(), 0.3)), "numpy": unprepared(numpys)}
    choosing = take_turns(choices, repetitions, warmup)
    none, replay, select = (times[side]["cpu"] for side in sides)
    return [
        Row.slowdown(f"{epochs} epochs with `HardBatches`", "without", replay, none, "cpu"),
        Row.slowdown(f'{epochs} epochs with `HardBatches`, mode "select"', "without", select, none, "cpu"),
        Row.slowdown(
            "choosing among 391 batches",
            "numpy's `argpartition` of means",
            choosing["ours"]["cpu"],
            choosing["numpy"]["cpu"],
            "cpu",
        ),
    ]
