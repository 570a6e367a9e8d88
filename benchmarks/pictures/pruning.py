"""The picture of pruning: the cubic schedule, and which weights of a small network stay."""

import torch
from matplotlib.figure import Figure

from lightning_vision.backbones import create
from lightning_vision.callbacks.hooks.sparsity import chosen_weights
from lightning_vision.callbacks.pruning.gradual import cubic_sparsity, pruning_step
from lightning_vision.callbacks.pruning.magnitude import magnitude_masks

__all__ = ["draw"]

BEGIN, END, EVERY, SPARSITY = 100, 900, 100, 0.9


def draw() -> Figure:
    """The schedule, and what 90% leaves of each layer, over all layers together and by layer."""
    figure = Figure(figsize=(10, 3.4))
    schedule, layers = figure.subplots(1, 2, width_ratios=(1, 1.25))
    steps = range(1101)
    points = [pruning_step(step, BEGIN, END, EVERY) for step in steps]
    held = [0.0 if it is None else cubic_sparsity(it, SPARSITY, BEGIN, END) for it in points]
    schedule.plot(steps, [cubic_sparsity(it, SPARSITY, BEGIN, END) for it in steps], "0.7", label="cubic")
    schedule.plot(steps, held, "C3", linewidth=2, label=f"zeros, every {EVERY} steps")
    schedule.plot(steps, [SPARSITY] * len(steps), "C0", linewidth=1.2, label="at once, at step 0")
    schedule.set(xlabel="optimizer steps", ylabel="share of weights that are zero", ylim=(0, 1), xlim=(0, 1100))
    schedule.legend(frameon=False, loc="lower right")

    torch.manual_seed(0)
    weights = chosen_weights("Pruning", create("resnet8_cifar", num_classes=10, in_channels=1))
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    total = sum(weight.numel() for weight in weights.values())
    masks = magnitude_masks(weights, kept, total - round(SPARSITY * total))
    left = [100 * float(mask.float().mean()) for mask in masks.values()]
    names = [f"{name.removesuffix('.weight')}  ({weight.numel():,})" for name, weight in weights.items()]
    layers.barh(names, left, color="C3", height=0.7, label="magnitude over all layers")
    layers.axvline(100 * (1 - SPARSITY), color="0.4", linewidth=1, label="the same share of each")
    layers.invert_yaxis()
    layers.tick_params(axis="y", labelsize=7)
    layers.set(xlabel="weights of a fresh resnet8_cifar that stay, percent", xlim=(0, 100))
    layers.legend(frameon=False, loc="lower right")
    for axes in (schedule, layers):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
