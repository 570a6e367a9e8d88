"""Ways from noise to points of two dimensions: two moons, small networks and their training, for pictures."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import make_moons
from torch import Tensor, nn

__all__ = ["Field", "bare", "moons", "points", "train"]


class Field(nn.Module):
    """An MLP of points `(B, C, 1, 1)` and times, which it multiplies by `pace`."""

    def __init__(self, before: int, after: int, pace: float = 1.0, width: int = 64) -> None:
        super().__init__()
        self.pace = pace
        sizes = [before + 1, width, width, width]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, after))

    def forward(self, x: Tensor, time: Tensor, label: Any = None) -> Tensor:
        found: Tensor = self.layers(torch.cat([x.flatten(1), self.pace * time[:, None]], 1))
        return found[..., None, None]


def moons(count: int) -> tuple[Tensor, Tensor]:
    """Points `(N, 2, 1, 1)` of mean 0 and deviation 1, and their moons, 0 or 1."""
    found, which = make_moons(count, noise=0.05, random_state=0)
    x = torch.from_numpy(found).float()
    return ((x - x.mean(0)) / x.std(0))[..., None, None], torch.from_numpy(which)


def points(x: Tensor) -> tuple[list[float], list[float]]:
    """Both coordinates of `(N, 2, 1, 1)`, for a plot."""
    first, second = x.flatten(1).T.tolist()
    return first, second


def train(network: nn.Module, loss: Callable[[int], Tensor], steps: int, rate: float = 5e-3) -> None:
    """Minimise what `loss` says of the number of a step, with Adam and a rate that falls as a cosine."""
    adam = torch.optim.Adam(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in range(steps):
        adam.zero_grad()
        loss(step).backward()
        adam.step()
        schedule.step()


def bare(axes: Any, title: str, limit: float = 2.6) -> None:
    """No ticks and no frame, a title and one scale for all panels."""
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
    axes.set_title(title, fontsize=10)
    axes.spines[:].set_visible(False)
