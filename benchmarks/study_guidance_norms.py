"""`study_guidance` with the layers that the authors have: does an untrained guide help where batch norm holds scales?

Without norms the variation between images shrinks from layer to layer, and with it what the task asks of the weights,
while CKA does not see scale and asks as much as ever. Depths, arms and network were committed before the first run;
all else is as in `study_guidance`.
"""

from functools import partial

from torch import nn

from .study_guidance import SETTING, WIDTH, tables

__all__ = ["blocks", "normed_network"]

DEPTHS = (12, 48)  # that of `study_guidance`, and that of the authors' deep network


def blocks(quick: bool) -> dict[str, str]:
    """For each depth two tables of every arm and seed: accuracy and alignment.

    Args:
        quick: One seed, four steps.
    """
    found = {}
    for depth in DEPTHS:
        note = (
            f"Percent, over 359 test digits. {depth} hidden layers of width {WIDTH}, each with batch norm and dropout "
            f"0.1 as in the authors' scripts, learn {SETTING}"
        )
        found[f"study_guidance_norms_{depth}"] = (
            f"{tables(partial(normed_network, depth, WIDTH), ['plain', 'guided'], quick)}\n\n{note}"
        )
    return found


def normed_network(depth: int, width: int) -> nn.Sequential:
    """Fully connected with batch norm and dropout: images `(B, 1, 8, 8)` to logits `(B, 10)`."""
    hidden = [
        it
        for place in range(depth)
        for it in (nn.Linear(width if place else 64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))
    ]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))
