"""The picture of InitialLossCheck: losses of digits with a right network and three that are wrong from the start."""

import math

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from ._trained_digits import digits

__all__ = ["draw"]

STEPS = 200
KINDS = ("logits", "logits, last layer 20 times too large", "softmax before cross entropy", "ReLU before cross entropy")


def draw() -> Figure:
    """The first losses beside ln 10, and how each goes on."""
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind in KINDS:
        losses = _losses(kind)
        (line,) = axes.plot(losses, linewidth=2, label=kind)
        axes.plot(0, losses[0], "o", color=line.get_color())
    axes.axhline(math.log(10), color="0.5", linestyle=":")
    axes.text(STEPS + 2, math.log(10), "ln 10", va="center", color="0.4")
    axes.axhline(math.log(math.e + 9) - 1, color="tab:green", linestyle=":", linewidth=1)
    axes.text(STEPS + 2, math.log(math.e + 9) - 1, "ln(e + 9) - 1", va="center", color="tab:green")
    axes.set(xlabel="optimizer steps", ylabel="cross entropy", yscale="log", xlim=(-3, STEPS))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", fontsize=9)
    return figure


def _losses(kind: str) -> list[float]:
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        if kind == KINDS[1]:
            with torch.no_grad():
                network[-1].weight *= 20  # type: ignore[operator]  # a layer's weight is a tensor
        network.append({KINDS[2]: nn.Softmax(1), KINDS[3]: nn.ReLU()}.get(kind, nn.Identity()))
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        found = []
        for _ in range(STEPS):
            batch = torch.randint(len(images), (128,))
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            found.append(float(loss.detach()))
            adam.zero_grad()
            loss.backward()
            adam.step()
    return found
