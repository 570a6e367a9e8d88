"""The picture of reactivation: dead units of each ReLU, before and after as many weights went in two ways."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks.pruning.magnitude import magnitude_masks
from lightning_vision.callbacks.pruning.reactivation import dead_neuron_rate, reactivation_masks

from ._trained_digits import digits, trained

__all__ = ["draw"]

BUDGET = 3000


def draw() -> Figure:
    """A network that reads digits: its dead neuron rates as trained, and with 3,000 weights less."""
    images, labels = digits()
    network, shown = trained(labels, 10), images[:256]
    weights = {name: it.detach() for name, it in network.named_parameters() if it.ndim > 1}
    kept = {name: torch.ones_like(it, dtype=torch.bool) for name, it in weights.items()}
    ours = reactivation_masks(network, shown, weights, kept, BUDGET)
    gone = sum(int((~mask).sum()) for mask in ours.values())
    smallest = magnitude_masks(weights, kept, sum(it.numel() for it in weights.values()) - gone)
    arms = {
        "as trained": (kept, "0.8"),
        f"without the {gone:,} smallest weights": (smallest, "C0"),
        f"without {gone:,} weights that hold units down": (ours, "C3"),
    }
    figure = Figure(figsize=(8, 3.4))
    axes = figure.subplots()
    for at, (label, (masks, colour)) in enumerate(arms.items()):
        rates = dead_neuron_rate(network, shown, {name: weights[name] * mask for name, mask in masks.items()})
        axes.bar(
            [relu + 0.27 * (at - 1) for relu in range(len(rates))],
            list(rates.values()),
            0.25,
            color=colour,
            label=label,
        )
    relus = [name for name, part in network.named_modules() if isinstance(part, nn.ReLU)]
    axes.set_xticks(range(len(relus)), [f"ReLU {at}" for at in range(1, len(relus) + 1)])
    axes.set(ylabel="dead neuron rate", ylim=(0, 1))
    axes.legend(frameon=False, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
