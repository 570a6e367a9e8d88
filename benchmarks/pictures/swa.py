"""The picture of SWA: noisy descent at a constant rate, and the equal average of where it passes late."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.averaging.swa import swa_share

__all__ = ["draw"]

STEPS, START = 600, 300
CURVATURE = torch.tensor([1.0, 8.0])
BEGIN = torch.tensor([-4.0, 1.6])
RATE, NOISE = 0.05, 1.5


def draw() -> Figure:
    """600 steps of noisy gradient descent in two dimensions, averaged over the last half."""
    path = _descent()
    average = _averaged(path[START:])
    figure = Figure(figsize=(10, 3.4))
    plane, losses = figure.subplots(1, 2, width_ratios=(1, 1.25))
    plane.plot(path[: START + 1, 0], path[: START + 1, 1], "0.8", linewidth=1)
    plane.plot(path[START:, 0], path[START:, 1], "C0", linewidth=1)
    plane.plot(average[:, 0], average[:, 1], "C3", linewidth=2)
    plane.plot(0, 0, "k+", markersize=12)
    plane.annotate("minimum", (0, 0), (-2.9, -0.95), arrowprops={"arrowstyle": "-"})
    plane.set(xlabel="first weight", ylabel="second weight")
    steps = range(STEPS + 1)
    losses.plot(steps[: START + 1], _loss(path[: START + 1]), "0.8", label="trained weights")
    losses.plot(steps[START:], _loss(path[START:]), "C0", linewidth=1, label="trained weights that are averaged")
    losses.plot(steps[START:], _loss(average), "C3", linewidth=2, label="their average")
    losses.axvline(START, color="0.6", linewidth=1, linestyle=":")
    losses.set(xlabel="optimizer steps", ylabel="loss", yscale="log", ylim=(1e-4, 1e3), xlim=(0, STEPS))
    losses.legend(frameon=False, loc="upper right")
    for axes in (plane, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _descent() -> Tensor:
    """Weights `(STEPS + 1, 2)` of gradient descent whose gradients are off by normal noise."""
    noise = NOISE * torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0)) * CURVATURE.sqrt()
    path = [BEGIN]
    for off in noise:
        path.append(path[-1] - RATE * (CURVATURE * path[-1] + off))
    return torch.stack(path)


def _averaged(path: Tensor) -> Tensor:
    averages = [path[0]]
    for update, weights in enumerate(path[1:]):
        averages.append(torch.lerp(averages[-1], weights, swa_share(update)))
    return torch.stack(averages)


def _loss(path: Tensor) -> Tensor:
    return (path**2 * CURVATURE / 2).sum(dim=1)
