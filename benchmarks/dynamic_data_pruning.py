"""What SeTa adds to an epoch of all samples, what its epochs cost, and what the choice among many samples does."""

from functools import partial

import torch

from lightning_vision.callbacks import DynamicDataPruning
from lightning_vision.callbacks.curation.dynamic_data_pruning import loss_groups

from .curated import epochs_on_digits
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on digits with and without; group 50,000 losses by k-means and by their rank.

    Args:
        quick: One repetition of two epochs.
    """
    epochs, repetitions, warmup = (2, 1, 0) if quick else (8, 7, 1)
    every = partial(DynamicDataPruning, prune_ratio=0.0, window_scale=0.999, num_group=5, network="network")
    sides = {
        "none": epochs_on_digits(epochs),
        "all": epochs_on_digits(epochs, every),
        "ours": epochs_on_digits(epochs, partial(DynamicDataPruning, network="network")),
    }
    times = take_turns(sides, repetitions, warmup)
    losses = torch.rand(50_000, generator=torch.Generator().manual_seed(0)).log().neg()

    def ranks() -> torch.Tensor:
        return losses.argsort().argsort() * 10 // len(losses)

    choices = {"k-means": unprepared(lambda: loss_groups(losses, 10)), "ranks": unprepared(ranks)}
    choosing = take_turns(choices, repetitions, warmup)
    none, kept, ours = (times[side]["cpu"] for side in sides)
    return [
        Row.slowdown(f"{epochs} epochs with all samples in the window", "without", kept, none, "cpu"),
        Row.slowdown(f"{epochs} epochs with `DynamicDataPruning`", "without", ours, none, "cpu"),
        Row.slowdown("grouping 50,000 losses", "by rank", choosing["k-means"]["cpu"], choosing["ranks"]["cpu"], "cpu"),
    ]
