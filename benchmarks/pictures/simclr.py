"""The picture of SimCLR: two views of six digits, and which embeddings attract and which repel."""

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from ._placed import placed_digits, show, two_views

__all__ = ["draw"]

COUNT = 6


def draw() -> Figure:
    """Rows: images, their two views. On the right, the pairs of the 2N embeddings."""
    images = placed_digits(COUNT)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[5, 3.4])
    for row, (name, shown) in enumerate(
        zip(("image", "view 1", "view 2"), (images, *two_views(images, "digits")), strict=True)
    ):
        for column, image in enumerate(shown):
            show(left.add_subplot(3, COUNT, row * COUNT + column + 1), image, "" if column else name)
    pairs = torch.ones(2 * COUNT, 2 * COUNT).fill_diagonal_(0)
    pairs += torch.eye(2 * COUNT).roll(COUNT, 1)
    axes = right.add_subplot()
    axes.imshow(pairs, cmap=ListedColormap(["white", "lightgrey", "tab:orange"]))
    axes.set(xticks=[2.5, 8.5], xticklabels=["view 1", "view 2"], yticks=[2.5, 8.5], yticklabels=["view 1", "view 2"])
    axes.set_xticks([it - 0.5 for it in range(1, 2 * COUNT)], minor=True)
    axes.set_yticks([it - 0.5 for it in range(1, 2 * COUNT)], minor=True)
    axes.grid(which="both", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    return figure
