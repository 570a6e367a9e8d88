"""The picture of SynFlow: how many weights the emptiest layer has left, the sparser a network gets."""

from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks.pruning.magnitude import magnitude_masks
from lightning_vision.callbacks.pruning.synflow import synflow_masks

__all__ = ["draw"]

WIDTHS = (64, 160, 160, 80, 10)
IMAGE = torch.ones(1, WIDTHS[0])


def draw() -> Figure:
    """A perceptron as initialised, pruned from all of its weights down to one for each layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for i, o in pairwise(WIDTHS) for part in (nn.Linear(i, o, bias=False), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    weights = {name: it.detach() for name, it in network.named_parameters()}
    kept = {name: torch.ones_like(it, dtype=torch.bool) for name, it in weights.items()}
    total = sum(it.numel() for it in weights.values())
    counts = [round(total * (len(weights) / total) ** (k / 6)) for k in range(6)] + [len(weights)]
    ways = {
        "magnitude": (lambda count: magnitude_masks(weights, kept, count), "0.6"),
        "SynFlow, 1 round": (lambda count: synflow_masks(network, weights, kept, IMAGE, count, 1), "C0"),
        "SynFlow, 100 rounds": (lambda count: synflow_masks(network, weights, kept, IMAGE, count, 100), "C3"),
    }
    figure = Figure(figsize=(9, 3.4))
    least, shares = figure.subplots(1, 2, width_ratios=(1.3, 1))
    for at, (label, (way, colour)) in enumerate(ways.items()):
        masks = [way(count) for count in counts]
        emptiest = [min(int(mask.sum()) for mask in each.values()) for each in masks]
        least.plot([total / count for count in counts], emptiest, colour, marker="o", markersize=4, label=label)
        left = [float(mask.float().mean()) for mask in masks[3].values()]
        shares.bar([layer + 0.27 * (at - 1) for layer in range(len(left))], left, 0.25, color=colour)
    least.set_yscale("symlog", linthresh=1)
    least.set(xlabel="compression", ylabel="weights in the emptiest layer", xscale="log", ylim=(-0.2, 4e3))
    least.legend(frameon=False, loc="upper right")
    shares.set(
        xlabel="layer", ylabel="share left", yscale="log", title=f"compression {total / counts[3]:.0f}", xticks=range(4)
    )
    for axes in (least, shares):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
