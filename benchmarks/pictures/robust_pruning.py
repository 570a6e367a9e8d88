"""The picture of robust pruning: ADMM parts weights before they are pruned; HSIC sees what depends on what."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.pruning.robust_pruning import admm_projection, gaussian_kernel, hsic

__all__ = ["draw"]

COUNT, KEPT, STEPS, EVERY, RHO, RATE = 24, 8, 240, 20, 1.0, 0.02


def draw() -> Figure:
    """Weights of a quadratic loss under ADMM, and three pairs of quantities with their dependence."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.3))
    _pull(left.subplots())
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(200, 1, generator=random) - 1
    noise = 0.15 * torch.randn(200, 1, generator=random)
    pairs = {"independent": x[torch.randperm(200, generator=random)], "a line": x + noise, "a parabola": 2 * x**2 - 1}
    for axes, (name, y) in zip(right.subplots(1, 3), pairs.items(), strict=True):
        value = hsic(gaussian_kernel(x, 0.5), gaussian_kernel(y, 0.5))
        correlation = torch.corrcoef(torch.cat([x, y], dim=1).T)[0, 1]
        axes.plot(x, y, "C0.", markersize=3)
        axes.set(xticks=[], yticks=[], xlabel=f"HSIC {value:.4f}\ncorrelation {correlation:+.2f}")
        axes.set_title(name, fontsize=10)
        axes.set_box_aspect(1)
    return figure


def _pull(axes: Axes) -> None:
    wanted = torch.randn(COUNT, generator=torch.Generator().manual_seed(5))
    path, largest = _descent(wanted), wanted.abs().argsort(descending=True)[:KEPT].tolist()
    for place in range(COUNT):
        kept = place in largest
        axes.plot(path[:, place], "C3" if kept else "0.65", linewidth=1.6 if kept else 0.8)
    axes.axvline(STEPS, color="0.3", linestyle=":")
    axes.text(STEPS - 4, 1.1, "pruned", ha="right", fontsize=8)
    axes.set(xlabel="optimizer steps", ylabel=f"{COUNT} weights, of which {KEPT} stay", xlim=(0, STEPS + 20))
    axes.spines[["top", "right"]].set_visible(False)


def _descent(wanted: Tensor) -> Tensor:
    """Weights `(STEPS + 2, COUNT)` that a loss |W - wanted|^2 / 2 holds where they are and ADMM pulls; then pruned."""
    weights, multipliers = wanted.clone(), torch.zeros(COUNT)
    projected = admm_projection({"w": weights}, KEPT)["w"]
    path = [weights.clone()]
    for step in range(1, STEPS + 1):
        weights -= RATE * (weights - wanted + RHO * (weights - projected + multipliers))
        if step % EVERY == 0:
            moved = weights + multipliers
            projected = admm_projection({"w": moved}, KEPT)["w"]
            multipliers = moved - projected
        path.append(weights.clone())
    pruned = admm_projection({"w": weights}, KEPT)["w"]
    return torch.stack([*path, *[pruned] * 20])
