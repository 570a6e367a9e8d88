"""The picture of Representation: four sets of features on a circle, and what the numbers say of each."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks import alignment, feature_spread, rank_me, uniformity

__all__ = ["draw"]

IMAGES, CLASSES = 120, 6


def draw() -> Figure:
    """Two views of 120 images of six classes."""
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    for axes, (name, first, second) in zip(figure.subplots(1, 4), _sets(), strict=True):
        unit = F.normalize(first, dim=1)
        axes.scatter(*unit.T, c=[f"C{it % CLASSES}" for it in range(IMAGES)], s=14, alpha=0.6)
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=[], yticks=[], aspect="equal", title=name)
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        lines = [
            f"rank {rank_me(first):.2f}, spread {float(feature_spread(first).mean()):.2f}",
            f"uniformity {uniformity(first):.2f}, alignment {alignment(first, second):.2f}",
        ]
        axes.set_xlabel("\n".join(lines))
    return figure


def _sets() -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def noise(size: float) -> Tensor:
        return size * torch.randn(IMAGES, generator=generator)

    classes = torch.arange(IMAGES) % CLASSES * (2 * torch.pi / CLASSES)
    anywhere = 2 * torch.pi * torch.rand(IMAGES, generator=generator)
    for name, angle, between in (
        ("even, classes apart", classes + noise(0.15), 0.1),
        ("even, views apart", anywhere, 1.5),
        ("narrow", 0.3 * classes + noise(0.1), 0.1),
        ("collapsed", noise(0.01) + 0.8, 0.01),
    ):
        yield name, *(torch.stack([it.cos(), it.sin()], 1) for it in (angle, angle + noise(between)))
