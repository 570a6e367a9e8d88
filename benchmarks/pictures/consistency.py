"""The picture of consistency training: which noise goes with which image, and what one and two steps make of it."""

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.generation import Consistency

from ._moons import Field, bare, points, train

__all__ = ["draw"]

ROWS = 600
COLOURS = ("tab:orange", "tab:blue", "tab:green")


def draw() -> Figure:
    """The encoder's noise of three heaps; images made in one step, each joined to its noise; images of two steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data, which = _heaps(ROWS)
        (plain, alone), (coupled, both) = _trained("independent"), _trained("variational")
        fresh = torch.randn(ROWS, 2, 1, 1)
        with torch.no_grad():
            noise, _ = coupled.emitted(both["encoder"], data, torch.randn_like(data))
        made = [process.sample(it, fresh, 1) for process, it in ((plain, alone), (coupled, both))]
        made.append(coupled.sample(both, fresh, 2))
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    panels = figure.subplots(1, 4)
    for number, colour in enumerate(COLOURS):
        panels[0].plot(*points(noise[which == number]), ".", color=colour, markersize=2.5)
        panels[0].plot(*points(data[which == number]), ".", color="0.75", markersize=1.5)
    bare(panels[0], "the encoder's noise of three heaps")
    names = ("one step, independent", "one step, variational", "two steps, variational")
    for panel, name, images in zip(panels[1:], names, made, strict=True):
        _joined(panel, fresh, images)
        bare(panel, name)
    return figure


def _heaps(count: int) -> tuple[Tensor, Tensor]:
    """Points `(N, 2, 1, 1)` around the corners of a triangle, and their corners."""
    which = torch.randint(3, (count,))
    angle = which * (2 * math.pi / 3) + math.pi / 2
    corners = 1.3 * torch.stack([angle.cos(), angle.sin()], 1)
    return (corners + 0.1 * torch.randn(count, 2))[..., None, None], which


def _trained(coupling: Any) -> tuple[Consistency, Any]:
    torch.manual_seed(0)
    process = Consistency(coupling, beta=3.0, stages=4, data_std=1.0, location=-0.4, sigma_max=20.0, middle=1.0)
    networks = process.build(lambda in_channels=2, out_channels=2: Field(in_channels, out_channels, 1000.0), 2)

    def loss(step: int) -> Tensor:
        x, _ = _heaps(256)
        return process.terms(networks, x, torch.randn_like(x), torch.rand(256), None, step / 1000)["loss"]

    train(networks, loss, 1000)
    return process, networks


def _joined(panel: Any, noise: Tensor, images: Tensor) -> None:
    for begin, end in zip(noise[:80].flatten(1), images[:80].flatten(1), strict=True):
        panel.plot(*zip(begin.tolist(), end.tolist(), strict=True), "-", color="0.85", linewidth=0.6)
    panel.plot(*points(images), ".", color="tab:red", markersize=2)
