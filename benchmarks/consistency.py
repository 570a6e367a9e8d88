"""A training step of consistency training beside a bare loop of the same networks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_vision.generation import Consistency, DiffusionModel

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

SETTINGS = {"channels": 32, "multiples": (1, 2), "blocks": 1, "attention": (1,), "head_dim": 32}


def rows(quick: bool) -> list[Row]:
    """Digits of 8 pixels, 128 in a step.

    Args:
        quick: One repetition with eight images.
    """
    images = 8 if quick else 128
    data, label = torch.randn(images, 1, 8, 8), torch.randint(10, (images,))
    plain, coupled = (_model(coupling) for coupling in ("independent", "variational"))
    sides = {
        "plain": _step(plain, data, label),
        "bare": _bare(plain, data, label),
        "coupled": _step(coupled, data, label),
        "coupled, bare": _bare(coupled, data, label),
    }
    times = take_turns({name: unprepared(run) for name, run in sides.items()}, *(1, 0) if quick else (15, 1))
    cpu = {name: clocks["cpu"] for name, clocks in times.items()}
    what = f"training step, {images} images, "
    return [
        Row.slowdown(f"{what}`independent`", "a bare loop", cpu["plain"], cpu["bare"], "cpu", "<= 1.05"),
        Row.slowdown(f"{what}`variational`", "a bare loop", cpu["coupled"], cpu["coupled, bare"], "cpu", "<= 1.05"),
        Row.slowdown(f"{what}`variational`", "`independent`", cpu["coupled"], cpu["plain"], "cpu"),
    ]


def _model(coupling: Any) -> DiffusionModel:
    torch.manual_seed(0)
    process = Consistency(coupling)
    return DiffusionModel("unet", process, network_settings=SETTINGS, num_classes=10, in_channels=1, image_size=8)


def _step(model: DiffusionModel, data: Tensor, label: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def run() -> None:
        _descend(model.losses(data, label, torch.Generator().manual_seed(0))["loss"], optimizer)

    return run


def _bare(model: DiffusionModel, data: Tensor, label: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    parts: dict[str, torch.nn.Module] = dict(model.network.named_children())
    generator, encoder = parts.get("generator", model.network), parts.get("encoder")
    roots = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 11) ** 7

    def image(x: Tensor, sigma: Tensor, hidden: Tensor) -> Tensor:
        level, shrink = sigma - 0.002, (0.25 + sigma**2).rsqrt()
        told = generator(shrink * x, sigma.flatten().log() / 4000, hidden)
        return 0.25 / (level**2 + 0.25) * x + 0.5 * level * shrink * told

    def run() -> None:
        noise, hidden = torch.randn_like(data), torch.where(torch.rand(len(data)) < 0.1, 10, label)
        gap = torch.randint(10, (len(data), 1, 1, 1))
        loss = torch.zeros(())
        if encoder is not None:
            mean, spread = encoder(2 * data, torch.zeros(len(data)), hidden).chunk(2, 1)
            noise = mean + (spread / 2).exp() * noise
            loss = (spread.exp() + mean**2 - 1 - spread).sum() / (2 * len(data))
        told = image(data + roots[gap + 1] * noise, roots[gap + 1], hidden)
        with torch.no_grad():
            target = image(data + roots[gap] * noise, roots[gap], hidden)
        bend = 0.00054 * math.sqrt(data[0].numel())
        far = ((told - target).flatten(1).square().sum(1) + bend**2).sqrt() - bend
        _descend(loss + (far / (roots[gap + 1] - roots[gap]).flatten()).mean(), optimizer)

    return run


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
