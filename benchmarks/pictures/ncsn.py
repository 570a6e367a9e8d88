"""The picture of score matching: points walk along the scores of a mixture, at lower and lower levels of noise."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.generation.processes.ncsn import NCSN
from lightning_vision.generation.samplers.langevin import annealed_langevin

__all__ = ["draw"]

CENTRES = torch.tensor([[-2.0, -1.5], [2.0, -1.5], [0.0, 2.0]])
SHARES, WIDTH = torch.tensor([0.2, 0.3, 0.5]), 0.3


def draw() -> Figure:
    """Three Gaussians that hold 20, 30 and 50% of the points, reached from afar."""
    levels = NCSN(sigma_begin=6.0, sigma_end=0.1, levels=12).sigmas
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes: Any = figure.subplots(1, 4, sharex=True, sharey=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = levels[0] * torch.randn(600, 2)
        for axis, (first, last) in zip(axes, ((0, 0), (0, 4), (4, 8), (8, 12)), strict=True):
            if last:
                # The length of steps is told by the last of the levels that are walked.
                eps = 0.15 * float(levels[last - 1]) ** 2
                x = annealed_langevin(_score(levels[first:last]), x, levels[first:last], eps, steps=40)
            axis.scatter(*x.T, s=3, color="tab:orange")
            axis.scatter(*CENTRES.T, marker="+", s=60, color="black")
            axis.set(xticks=[], yticks=[], xlim=(-9, 9), ylim=(-9, 9))
            axis.set_title(f"after sigma = {levels[last - 1]:.2g}" if last else "noise", fontsize=9)
    near = torch.cdist(x, CENTRES).argmin(1)
    for number, centre in enumerate(CENTRES):
        share = float((near == number).float().mean())
        axes[-1].annotate(f"{share:.0%}", (float(centre[0]), float(centre[1]) + 1.2), fontsize=9, ha="center")
    return figure


def _score(levels: Tensor) -> Any:
    """Of the mixture to which noise of a level was added."""

    def gradient(x: Tensor, level: int) -> Tensor:
        variance = WIDTH**2 + levels[level] ** 2
        apart = CENTRES - x[:, None]
        weight = (SHARES.log() - apart.square().sum(2) / (2 * variance)).softmax(1)
        return (weight[..., None] * apart).sum(1) / variance

    return gradient
