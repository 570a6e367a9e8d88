"""The picture of BatchLeakCheck: which output rows change with which input rows, layer by layer."""

from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks.verification.batch_leak_check import batch_leaks

__all__ = ["draw"]

SAMPLES = 12


class LessTheMean(nn.Module):
    """A mean over the wrong dimension."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows - rows.mean(0)


class Turned(nn.Module):
    """`view` where a transposition was meant."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows.view(-1, len(rows)).T


def draw() -> Figure:
    """By how much row i of each layer's output depends on image j, for a right network and two wrong ones."""
    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    middles = {"right": nn.Identity(), "x - x.mean(0)": LessTheMean(), "x.view(-1, B).T": Turned()}
    grid = figure.subplots(3, 4)
    for line, (name, middle) in zip(grid, middles.items(), strict=True):
        network, images = _network(middle)
        leaks = batch_leaks(partial(network, images), network).leaks
        named = {int(it.path) for it in leaks}
        for number, axes in enumerate(line):
            axes.imshow(_dependence(network[: number + 1], images), cmap="magma", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            if number in named:
                axes.spines[:].set(color="tab:red", linewidth=4)
            kind = name if number == 2 else f"{type(network[number]).__name__}"
            axes.set_title(f"{number}: {kind}", fontsize=10, color="tab:red" if number in named else "black")
        line[0].set_ylabel("output of sample i")
    for axes in grid[-1]:
        axes.set_xlabel("image j")
    return figure


def _network(middle: nn.Module) -> tuple[nn.Sequential, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), middle, nn.Linear(24, 10))
        return network, torch.randn(SAMPLES, 1, 8, 8)


def _dependence(part: nn.Module, images: Tensor) -> Tensor:
    """`(B, B)`, the norm of the gradient of output row i by image j, over the largest."""
    slopes = torch.autograd.functional.jacobian(lambda it: part(it).square().sum(1), images)
    norms: Tensor = slopes.flatten(2).norm(dim=2)
    return (norms / norms.max()).sqrt()
