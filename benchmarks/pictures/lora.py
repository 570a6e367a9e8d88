"""The picture of LoRA: how many ranks a change of a layer needs, and what updates of few ranks make of it.

A linear layer is to be moved by a change of four strong directions and many weak ones. Updates of rank 1 to 16 are
trained by gradient descent from B = 0; the best that a rank can do is known from the singular values.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.finetuning.lora import low_rank_weight

__all__ = ["draw"]

SIDE, STEPS, RATE = 32, 120, 0.025
RANKS = {1: "C0", 2: "C1", 4: "C2", 16: "C3"}


def draw() -> Figure:
    """The change and two updates as pictures, and the error along training for each rank."""
    change = _change()
    size = change.square().sum()
    updates = {rank: _trained(change, rank) for rank in RANKS}
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    *images, errors = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.7))
    top = change.abs().max().item()
    shown = {"the change": change, "rank 1": updates[1][0], "rank 4": updates[4][0]}
    for axes, (title, values) in zip(images, shown.items(), strict=True):
        axes.imshow(values, cmap="RdBu", vmin=-top, vmax=top)
        count = SIDE * SIDE if title == "the change" else 2 * SIDE * int(title[5:])
        axes.set_title(f"{title}: {count:,} numbers", fontsize=10)
        axes.set(xticks=[], yticks=[])
    values = torch.linalg.svdvals(change)
    for rank, colour in RANKS.items():
        errors.plot([100 * it for it in updates[rank][1]], colour, label=f"rank {rank}")
        errors.axhline(float(100 * values[rank:].square().sum() / size), color=colour, linestyle=":", linewidth=1)
    errors.set(xlabel="steps", ylabel="error, percent", xlim=(0, STEPS), ylim=(0, 102))
    errors.set_title("dotted: the best of that rank", fontsize=9)
    errors.legend(frameon=False)
    errors.spines[["top", "right"]].set_visible(False)
    return figure


def _change() -> Tensor:
    """A matrix `(SIDE, SIDE)` of four strong directions and many weak ones."""
    random = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(SIDE, SIDE, generator=random))[0] for _ in range(2))
    strength = torch.tensor([1.0, 0.8, 0.65, 0.5])
    weak = 0.12 * torch.rand(SIDE - 4, generator=random)
    return left @ torch.diag(torch.cat([strength, weak])) @ right.T


def _trained(change: Tensor, rank: int) -> tuple[Tensor, list[float]]:
    """An update of that rank, and the share of the change that it lacks after each step."""
    random = torch.Generator().manual_seed(0)
    down = (torch.randn(rank, SIDE, generator=random) / (3 * SIDE) ** 0.5).requires_grad_()
    up = torch.zeros(SIDE, rank, requires_grad=True)
    optimizer = torch.optim.Adam([down, up], lr=RATE)
    lacks = []
    for _ in range(STEPS):
        loss = (low_rank_weight(torch.zeros_like(change), down, up, 1.0) - change).square().sum()
        lacks.append(loss.item() / change.square().sum().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (up @ down).detach(), lacks
