"""Where the embeddings of two views of forty images end with one, two and three terms of VICReg's loss."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.self_supervised.vicreg import vicreg_loss

__all__ = ["draw"]

IMAGES, STEPS = 40, 300
WEIGHTS = {
    "at the start": None,
    "invariance": (25.0, 0.0, 0.0),
    "... and variance": (25.0, 25.0, 0.0),
    "... and covariance": (25.0, 25.0, 25.0),
}


def draw() -> Figure:
    """Two numbers an answer; the pair of an image is joined by a line."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axis, (name, weights) in zip(figure.subplots(1, len(WEIGHTS)), WEIGHTS.items(), strict=True):
        first, second = _answers(weights)
        axis.plot([first[:, 0], second[:, 0]], [first[:, 1], second[:, 1]], color="0.6", linewidth=0.8)
        for points, colour in ((first, "C0"), (second, "C1")):
            axis.scatter(points[:, 0], points[:, 1], s=9, color=colour, zorder=2)
        axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], title=name, aspect="equal")
    return figure


def _answers(weights: tuple[float, float, float] | None) -> Tensor:
    """Of a linear layer without bias, `(2, IMAGES, 2)`, which begins with embeddings that lie almost on a line."""
    random = torch.Generator().manual_seed(0)
    common, own = torch.randn(IMAGES, 2, generator=random), torch.randn(2, IMAGES, 2, generator=random)
    views = torch.cat([common.expand(2, -1, -1), own], 2)
    weight = torch.tensor([[0.6, 0.5], [0.1, 0.2], [0.2, 0.1], [-0.1, 0.1]], requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.02)
    for _ in range(STEPS if weights else 0):
        optimizer.zero_grad()
        first, second = views @ weight
        loss = vicreg_loss(first, second, *weights)["loss"]  # type: ignore[misc]  # no step without weights
        loss.backward()
        optimizer.step()
    return (views @ weight).detach()
