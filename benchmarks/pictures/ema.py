"""The picture of EMA: noisy descent on a small quadratic, its average, and what the warm-up is for."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.averaging.ema import ema_share

__all__ = ["draw"]

STEPS = 600
CURVATURE = torch.tensor([1.0, 8.0])
START = torch.tensor([-4.0, 1.6])
RATE, NOISE, DECAY = 0.05, 1.5, 0.98


def draw() -> Figure:
    """600 steps of noisy gradient descent in two dimensions: the paths, and the loss along them."""
    raw = _descent()
    paths = {
        "trained weights": (raw, "0.7", 1.0),
        f"average, decay {DECAY}, warm-up 10": (_averaged(raw, warmup=10.0), "C3", 2.0),
        f"average, decay {DECAY}, no warm-up": (_averaged(raw, warmup=1.0), "C0", 1.2),
    }
    figure = Figure(figsize=(10, 3.4))
    plane, losses = figure.subplots(1, 2, width_ratios=(1, 1.25))
    for label, (path, colour, width) in paths.items():
        plane.plot(path[:, 0], path[:, 1], colour, linewidth=width)
        losses.plot((path**2 * CURVATURE / 2).sum(dim=1), colour, linewidth=width, label=label)
    plane.plot(0, 0, "k+", markersize=12)
    plane.annotate("minimum", (0, 0), (-2.9, -0.95), arrowprops={"arrowstyle": "-"})
    plane.set(xlabel="first weight", ylabel="second weight")
    losses.set(xlabel="optimizer steps", ylabel="loss", yscale="log", ylim=(1e-4, 1e3), xlim=(0, STEPS))
    losses.legend(frameon=False, loc="upper right")
    for axes in (plane, losses):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _descent() -> Tensor:
    """Weights `(STEPS + 1, 2)` of gradient descent whose gradients are off by normal noise."""
    noise = NOISE * torch.randn(STEPS, 2, generator=torch.Generator().manual_seed(0)) * CURVATURE.sqrt()
    path = [START]
    for off in noise:
        path.append(path[-1] - RATE * (CURVATURE * path[-1] + off))
    return torch.stack(path)


def _averaged(path: Tensor, warmup: float) -> Tensor:
    averages = [path[0]]
    for update, weights in enumerate(path[1:]):
        averages.append(torch.lerp(averages[-1], weights, ema_share(update, DECAY, warmup)))
    return torch.stack(averages)
