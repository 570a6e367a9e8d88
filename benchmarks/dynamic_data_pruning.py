"""What SeTa adds to an epoch of all samples, what its epochs cost, and what the choice among many samples does."""

from functools import partial

import numpy as np
import torch
from sklearn.preprocessing import KBinsDiscretizer

from lightning_vision.callbacks import DynamicDataPruning
from lightning_vision.callbacks.curation.dynamic_data_pruning import loss_groups

from .fits import epochs_on_digits
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on digits with and without; group 50,000 losses.

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

    def bins() -> np.ndarray:
        made = KBinsDiscretizer(10, encode="ordinal", strategy="kmeans", subsample=None)
        found: np.ndarray = made.fit_transform(losses.double().numpy()[:, None])
        return found

    choices = {"ours": unprepared(lambda: loss_groups(losses, 10)), "bins": unprepared(bins)}
    choosing = take_turns(choices, repetitions, warmup)
    none, kept, ours = (times[side]["cpu"] for side in sides)
    return [
        Row.slowdown(f"{epochs} epochs with all samples in the window", "without", kept, none, "cpu"),
        Row.slowdown(f"{epochs} epochs with `DynamicDataPruning`", "without", ours, none, "cpu"),
        Row.slowdown(
            "grouping 50,000 losses",
            "scikit-learn's `KBinsDiscretizer`",
            choosing["ours"]["cpu"],
            choosing["bins"]["cpu"],
            "cpu",
        ),
    ]
