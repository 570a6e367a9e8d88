"""The picture of constant acceleration flow: its ways and one step of it, beside those of flow matching."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.generation import ConstantAcceleration, FlowMatching
from lightning_vision.generation.processes.flow_matching import coupled

from ._moons import Field, bare, moons, points, train

__all__ = ["draw"]

ROWS, SHOWN, STEPS = 2048, 24, 8


def draw() -> Figure:
    """Ways of 24 points with a dot at each eighth of the time, and 800 points made in one step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data, _ = moons(ROWS)
        flow, straight = _flow(data)
        noise = torch.randn(ROWS, 2, 1, 1)
        caf, networks = _accelerated(coupled(data, noise), data)
        fresh = torch.randn(800, 2, 1, 1)
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    panels = figure.subplots(1, 4)
    _ways(
        panels[0],
        "flow matching",
        [flow.solve(_until(it), straight, fresh[:SHOWN], STEPS, None, None) for it in range(9)],
    )
    _ways(panels[2], "constant acceleration", _positions(caf, networks, fresh[:SHOWN]))
    for panel, made in ((panels[1], flow.sample(straight, fresh, 1)), (panels[3], caf.sample(networks, fresh, 1))):
        panel.plot(*points(data[:800]), ".", color="0.85", markersize=3)
        panel.plot(*points(made), ".", color="tab:red", markersize=2)
        bare(panel, "in one step")
    return figure


def _flow(data: Tensor) -> tuple[FlowMatching, Field]:
    flow, field = FlowMatching(), Field(2, 2)

    def loss(step: int) -> Tensor:
        x = data[torch.randint(ROWS, (256,))]
        return flow.loss(field, x, torch.randn_like(x), torch.rand(256))

    train(field, loss, 1000)
    return flow, field


def _accelerated(noise: Tensor, data: Tensor) -> tuple[ConstantAcceleration, Any]:
    caf = ConstantAcceleration(coupling="given")
    networks = caf.build(lambda in_channels=2, out_channels=2: Field(in_channels, out_channels), 2)

    def loss(step: int) -> Tensor:
        rows = torch.randint(ROWS, (256,))
        return caf.loss(networks, data[rows], noise[rows], torch.rand(256))

    train(networks, loss, 1000)
    return caf, networks


def _until(count: int) -> Any:
    """Euler's first steps."""

    @torch.no_grad()
    def solve(model: Any, x: Tensor, times: Tensor) -> Tensor:
        for number in range(count):
            x = x + (times[number + 1] - times[number]) * model(x, times[number].expand(len(x)))
        return x

    return solve


@torch.no_grad()
def _positions(caf: ConstantAcceleration, networks: Any, noise: Tensor) -> list[Tensor]:
    """Where the points are after each of the steps."""
    found: list[Tensor] = []

    def followed(acceleration: Any, velocity: Tensor, x: Tensor, times: Tensor) -> Tensor:
        for number in range(len(times)):
            part = times[: number + 1]
            found.append(caf.samplers["accelerate"](acceleration, velocity, x, part))
        return found[-1]

    caf.solve(followed, networks, noise, STEPS, None, None)
    return found


def _ways(panel: Any, title: str, positions: list[Tensor]) -> None:
    way = torch.stack(positions).flatten(2)
    for number in range(SHOWN):
        panel.plot(way[:, number, 0], way[:, number, 1], "-", color="0.7", linewidth=0.8)
        panel.plot(way[:, number, 0], way[:, number, 1], ".", color="tab:blue", markersize=2.5)
    panel.plot(way[-1, :, 0], way[-1, :, 1], ".", color="tab:red", markersize=5)
    bare(panel, title)
