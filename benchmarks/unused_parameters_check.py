"""What reading gradients costs: a fit with and without the check, beside DDP's own search."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_vision.backbones import create
from lightning_vision.callbacks import UnusedParametersCheck

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` with batches of 32 for 20 steps, of which the check reads five.

    Args:
        quick: One repetition of two steps of 4.
    """
    size, steps = (4, 2) if quick else (32, 20)
    batches = batches_of(size, steps)

    def plain() -> Plain:
        torch.manual_seed(0)
        return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))

    def ddp(**search: bool) -> Callable[[], None]:
        model = DistributedDataParallel(plain().network, **search)
        return lambda: _train(model, batches)

    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    try:
        sides: dict[str, Side] = {
            "plain": fitting(plain, batches, 1),
            "checked": fitting(plain, batches, 1, UnusedParametersCheck),
            "ddp": unprepared(ddp()),
            "searching": unprepared(ddp(find_unused_parameters=True)),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (15, 1)).items()}
    finally:
        dist.destroy_process_group()
    what = f"a fit of {steps} steps"
    return [
        Row.slowdown(what, "without it", times["checked"], times["plain"], "cpu", "<= 1.05"),
        Row.slowdown(what, "a loop with `find_unused_parameters`", times["checked"], times["searching"], "cpu"),
        Row.slowdown(
            f"`DistributedDataParallel` with `find_unused_parameters`, {steps} steps",
            "without that",
            times["searching"],
            times["ddp"],
            "cpu",
        ),
    ]


def _train(model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for images, labels in batches:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
