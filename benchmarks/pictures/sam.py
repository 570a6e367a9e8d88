"""Two valleys, a sharp one with the lower floor and a flat one: where gradient descent and SAM go from one start."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.sharpness.sam import sam_perturbation

__all__ = ["draw"]

START, RATE, RHO, STEPS = -1.15, 0.00425, 0.4, 600


def _loss(x: torch.Tensor) -> torch.Tensor:
    sharp, flat = 200 * (x + 1) ** 2, (x - 1) ** 2 + 0.05
    return torch.where(x < -1, sharp, torch.minimum(sharp, flat))


def _path(rho: float) -> np.ndarray:
    """Positions of every step, `(STEPS + 1,)`; `rho` 0 is gradient descent."""

    def slope(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(_loss(x), x)[0]

    x, found = torch.tensor(START), [START]
    for _ in range(STEPS):
        there = x + sam_perturbation([slope(x)], rho)[0] if rho else x
        x = x - RATE * slope(there)
        found.append(x.item())
    return np.array(found)


def draw() -> Figure:
    """Left: the paths on the landscape, with their start and ends; right: the same paths against the step."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    landscape, time = figure.subplots(1, 2, width_ratios=(3, 2))
    x = torch.linspace(-1.25, 2.2, 2000)
    landscape.plot(x, _loss(x), color="0.6", linewidth=1)
    for name, rho, colour in (("gradient descent", 0.0, "tab:orange"), ("SAM", RHO, "tab:blue")):
        path = _path(rho)
        heights = _loss(torch.as_tensor(path))
        landscape.plot(path, heights, ".", color=colour, markersize=4, label=f"{name} ends at {path[-1]:.2f}")
        landscape.plot(path[-1], heights[-1], "o", color=colour, markersize=9)
        time.plot(path, color=colour, label=name)
    height = _loss(torch.tensor(START))
    landscape.plot(START, height, "kx", markersize=8)
    landscape.annotate("start", (START, height), (8, -3), textcoords="offset points")
    landscape.set(xlabel="weight", ylabel="loss", ylim=(-0.2, 5.2), title="sharp valley at -1, flat valley at 1")
    landscape.legend(frameon=False, loc="upper right")
    time.set(xlabel="step", ylabel="weight", title=f"rho = {RHO}, learning rate {RATE}")
    time.legend(frameon=False)
    for axes in (landscape, time):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
