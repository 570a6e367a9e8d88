"""The picture of rate-distortion: what pruning each layer does to the outputs, and the rates that come of it."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.pruning._criterion import Moment
from lightning_vision.callbacks.pruning.magnitude import Magnitude, magnitude_masks
from lightning_vision.callbacks.pruning.rate_distortion import (
    RateDistortion,
    distortion_curves,
    pruning_distortion,
    uniform_pruning_counts,
)

from ._trained_digits import digits, trained

__all__ = ["draw"]

SPARSITY = 0.8


def draw() -> Figure:
    """A network that reads digits: four curves, and the rates of three ways to 80% zeros."""
    images, labels = digits()
    network, shown = trained(labels, 10), images[:64]
    weights = {name: it.detach() for name, it in network.named_parameters() if it.ndim > 1}
    kept = {name: torch.ones_like(it, dtype=torch.bool) for name, it in weights.items()}
    # Neither criterion asks the network for anything of Lightning.
    moment = Moment(0, weights, kept, network, shown, torch.Generator())  # type: ignore[arg-type]
    total = sum(it.numel() for it in weights.values())
    figure = Figure(figsize=(9.6, 3.4))
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    names = ("convolution 1", "convolution 2", "linear 1", "linear 2")
    rates = tuple(k / 10 for k in range(1, 10))
    for name, (counts, distortions) in zip(
        names, distortion_curves(network, shown, weights, kept, rates).values(), strict=True
    ):
        left.plot([count / counts[-1] for count in counts[1:]], distortions[1:], label=name)
    left.set(
        xlabel="share of the layer that is pruned", ylabel="distortion of the logits", yscale="log", ylim=(1e-4, 1e4)
    )
    left.legend(frameon=False, loc="lower right")
    uniform = {}
    sizes = [it.numel() for it in weights.values()]
    for (name, it), count in zip(weights.items(), uniform_pruning_counts(sizes, round(SPARSITY * total)), strict=True):
        uniform |= magnitude_masks({name: it}, {name: kept[name]}, it.numel() - count)
    stay = total - round(SPARSITY * total)
    arms = {
        "one rate for all": (uniform, "0.8"),
        "global magnitude": (Magnitude().keep(moment, stay), "C0"),
        "rate-distortion": (RateDistortion(rates).keep(moment, stay), "C3"),
    }
    for at, (label, (masks, colour)) in enumerate(arms.items()):
        (apart,) = pruning_distortion(network, shown, weights, [masks])
        gone = [1 - float(mask.float().mean()) for mask in masks.values()]
        right.bar([it + 0.27 * (at - 1) for it in range(4)], gone, 0.25, color=colour, label=f"{label}: {apart:.0f}")
    right.set(ylabel="share that is pruned", ylim=(0, 1.5), yticks=(0, 0.5, 1))
    right.set_xticks(range(4), [name.replace(" ", "\n") for name in names])
    right.legend(frameon=False, loc="upper left", title="distortion, all layers pruned")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
