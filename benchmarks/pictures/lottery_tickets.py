"""The picture of lottery tickets: what two segments agree on, and how fast that shrinks beside one segment."""

import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_vision.callbacks.pruning.lottery_tickets import overlap, ticket_sizes
from lightning_vision.callbacks.pruning.magnitude import magnitude_masks

__all__ = ["draw"]

RATE, SPARSITY, STEPS, UNITS = 0.2, 0.9, 60, 8

Weights = dict[str, Tensor]


def draw() -> Figure:
    """The first round's masks of eight hidden units, as images of their inputs, and the weights left round by round."""
    bunch = load_digits()
    images, targets = torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target)
    random = torch.Generator().manual_seed(0)
    early = {"hidden": torch.randn(24, 64, generator=random) / 8, "head": torch.randn(10, 24, generator=random) / 5}
    halves = [(images[targets % 2 == part], targets[targets % 2 == part]) for part in (0, 1)]
    every = {name: torch.ones_like(it, dtype=torch.bool) for name, it in early.items()}
    total = sum(it.numel() for it in early.values())
    counts = [total, *ticket_sizes(total, SPARSITY, RATE)]
    even, odd = (_ticket(early, every, counts[1], *half) for half in halves)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    colours = ListedColormap(["white", "C0", "C3", "0.25"])
    # Units that lose most, for there the segments differ in sight.
    shown = (even["hidden"].int() + odd["hidden"].int()).sum(dim=1).argsort()[:UNITS]
    for axes, unit in zip(left.subplots(2, UNITS // 2).flat, shown, strict=True):
        shared = even["hidden"][unit].int() + 2 * odd["hidden"][unit].int()
        axes.imshow(shared.view(8, 8), cmap=colours, vmin=0, vmax=3)
        axes.set(xticks=[], yticks=[])
    left.suptitle("kept by even digits (blue), by odd ones (red), by both: the ticket (black)", fontsize=9)
    axes = right.subplots()
    axes.plot([it / total for it in counts], "C7o-", label="one segment: 0.8 of what was left")
    axes.plot(_rounds(early, every, halves, total), "C3o-", label="two segments: what both keep")
    axes.axhline(1 - SPARSITY, color="0.7", linestyle=":")
    axes.set(xlabel="rounds", ylabel="weights left", ylim=(0, 1.02))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _rounds(early: Weights, kept: Weights, halves: list[tuple[Tensor, Tensor]], total: int) -> list[float]:
    last, left = ticket_sizes(total, SPARSITY, RATE)[-1], [1.0]
    while (count := sum(int(it.sum()) for it in kept.values())) > last:
        stay = max(last, count - round(RATE * count))
        kept = overlap(*(_ticket(early, kept, stay, *half) for half in halves))
        left.append(sum(int(it.sum()) for it in kept.values()) / total)
    return left


def _ticket(early: Weights, kept: Weights, count: int, images: Tensor, targets: Tensor) -> Weights:
    """The largest weights after training what is kept of the early ones."""
    weights = {name: (it * kept[name]).requires_grad_(True) for name, it in early.items()}
    for _ in range(STEPS):
        logits = F.relu(images @ weights["hidden"].T) @ weights["head"].T
        gradients = torch.autograd.grad(F.cross_entropy(logits, targets), list(weights.values()))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                weight -= 0.5 * gradient * kept[name]
    return magnitude_masks(weights, kept, count)
