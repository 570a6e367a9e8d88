"""The picture of GeodesicMix: two sets matched by optimal transport, and digits on the way to their matches."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from lightning_vision.callbacks.mixing.geodesic_mix import geodesic_images, geodesic_partner, optimal_matching

__all__ = ["draw"]

POINTS = (0.0, 0.125, 0.25, 0.375, 0.5)


def draw() -> Figure:
    """Left points of two classes, matched, and the points on the way; right four digits of 3 on their way to an 8."""
    generator = torch.Generator().manual_seed(3)
    angle = torch.rand(24, generator=generator) * 3.1
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.08 * torch.randn(24, 2, generator=generator)
    first, second = ring[:12], ring[12:] * torch.tensor([1.0, -1.0]) + torch.tensor([1.0, 0.4])
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    axes = left.subplots()
    matching = optimal_matching(first, second)
    for own, other in zip(first[matching.first], second[matching.second], strict=True):
        axes.plot(*torch.stack([own, other], 1), color="0.8", linewidth=1, zorder=1)
        way = torch.stack([own + s * (other - own) for s in (0.25, 0.5, 0.75)])
        axes.scatter(way[:, 0], way[:, 1], color="0.55", s=10, zorder=2)
    axes.scatter(first[:, 0], first[:, 1], color="C0", label="one class", zorder=3)
    axes.scatter(second[:, 0], second[:, 1], color="C3", label="the other", zorder=3)
    axes.set(xticks=[], yticks=[], title="matched, and points on the way")
    axes.legend(frameon=False, loc="lower left")
    pixels, classes = load_digits(return_X_y=True)
    chosen = torch.cat([torch.from_numpy((classes == it).nonzero()[0][:8]) for it in (3, 8)])
    images, labels = torch.from_numpy(pixels[chosen]).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(classes[chosen])
    partner = geodesic_partner(images.flatten(1), labels, torch.arange(16))
    grid = right.subplots(4, len(POINTS) + 1)
    for column, s in enumerate((*POINTS, 1.0)):
        for row, image in enumerate(geodesic_images(images, partner, s)[:4, 0]):
            grid[row, column].imshow(image, cmap="gray_r", vmin=0, vmax=1)
            grid[row, column].set(xticks=[], yticks=[])
        grid[0, column].set_title("its match" if s == 1 else f"s = {s:g}", fontsize=10)
    return figure
