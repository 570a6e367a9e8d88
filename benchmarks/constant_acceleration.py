"""A training step and a sample of constant acceleration flow beside a bare loop and beside flow matching."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_vision.generation import ConstantAcceleration, DiffusionModel, FlowMatching

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

SETTINGS = {"channels": 32, "multiples": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 32}


def rows(quick: bool) -> list[Row]:
    """Digits of 8 pixels, 128 in a step, 256 sampled in one step.

    Args:
        quick: One repetition with eight images.
    """
    images = 8 if quick else 128
    data, label = torch.randn(images, 1, 8, 8), torch.randint(10, (images,))
    flow, straight = (_model(it) for it in (ConstantAcceleration(coupling="given"), FlowMatching()))
    labels = torch.arange(2 * images) % 10
    sides: dict[str, Callable[[], object]] = {
        "step": _step(flow, data, label),
        "bare": _bare(flow, data, label),
        "straight": _step(straight, data, label),
        "sample": lambda: flow.sample(2 * images, label=labels, steps=1),
        "euler": lambda: straight.sample(2 * images, label=labels, steps=1),
    }
    times = take_turns({name: unprepared(run) for name, run in sides.items()}, *(1, 0) if quick else (15, 1))
    cpu = {name: clocks["cpu"] for name, clocks in times.items()}
    what = f"training step, {images} images"
    return [
        Row.slowdown(what, "a bare loop", cpu["step"], cpu["bare"], "cpu", "<= 1.05"),
        Row.slowdown(what, "`FlowMatching`", cpu["step"], cpu["straight"], "cpu"),
        Row.slowdown(f"one step of sampling, {2 * images} images", "`euler`", cpu["sample"], cpu["euler"], "cpu"),
    ]


def _model(process: ConstantAcceleration | FlowMatching) -> DiffusionModel:
    torch.manual_seed(0)
    return DiffusionModel("unet", process, network_settings=SETTINGS, num_classes=10, in_channels=1, image_size=8)


def _step(model: DiffusionModel, data: Tensor, label: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run() -> None:
        _descend(model.losses(data, label, torch.Generator().manual_seed(0))["loss"], optimizer)

    return run


def _bare(model: DiffusionModel, data: Tensor, label: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    velocity, acceleration = (model.network.get_submodule(name) for name in ("velocity", "acceleration"))

    def run() -> None:
        noise, time = torch.randn_like(data), torch.rand(len(data))
        hidden = torch.where(torch.rand(len(data)) < 0.1, 10, label)
        t, first = time.view(-1, 1, 1, 1), 1.5 * (data - noise)
        way = (1 - t**2) * noise + t**2 * data
        loss = (velocity(way + (t - t**2) * first, time, hidden) - first).square().mean()
        with torch.no_grad():
            told = velocity(noise, torch.zeros(len(data)), hidden)
        seen = torch.cat([way + (t - t**2) * told, told], 1)
        off = acceleration(seen, time, hidden) - 2 * (data - noise - told)
        _descend(loss + off.square().mean(), optimizer)

    return run


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
