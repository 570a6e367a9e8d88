"""The picture of Intra-Fusion: the plan that carries channels into those that stay, and what a filter becomes."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks.pruning import intra_fusion, transport_plan

__all__ = ["draw"]

KEPT, SIZE = 6, 12


def draw() -> Figure:
    """Twelve edge filters, of which six stay: the plan, and filters kept, dropped and fused."""
    angles = torch.linspace(0, torch.pi, SIZE + 1)[:-1]
    along = torch.linspace(-1, 1, 5)
    across = angles.cos().view(-1, 1, 1) * along + angles.sin().view(-1, 1, 1) * along[:, None]
    strength = torch.tensor([1.0, 0.5]).repeat(KEPT).view(-1, 1, 1)
    filters = strength * torch.sin(2.5 * across)
    rows = filters.flatten(1) / filters.flatten(1).norm(dim=1, keepdim=True)
    plan = transport_plan(
        torch.cdist(rows, rows[::2], p=1.0), torch.full((SIZE,), 1 / SIZE), torch.full((KEPT,), 1 / KEPT)
    )
    network = nn.Sequential(nn.Conv2d(1, SIZE, 5, bias=False), nn.Conv2d(SIZE, 1, 1, bias=False)).requires_grad_(False)
    network[0].weight.copy_(filters[:, None])
    network[1].weight.fill_(0.1)
    intra_fusion(network, torch.zeros(2, 1, 8, 8), sparsity=0.5)
    figure = Figure(figsize=(10, 3.2))
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.9))
    axes = left.subplots()
    axes.imshow(plan.T, cmap="Greys")
    axes.set(xlabel="channel", ylabel="channel that stays", xticks=range(SIZE), yticks=range(KEPT), title="plan T")
    axes.set_yticklabels(range(0, SIZE, 2))
    lines = {"stays": filters[::2], "goes": filters[1::2], "fused": network[0].weight[:, 0]}
    for panel, (name, shown) in zip(right.subplots(3, KEPT), lines.items(), strict=True):
        panel[0].set_ylabel(name)
        for frame, image in zip(panel, shown, strict=True):
            frame.imshow(image, cmap="RdBu", vmin=-2, vmax=2)
            frame.set(xticks=[], yticks=[])
    return figure
