"""What gradual unfreezing saves: a run of four epochs against a full one, Lightning's way and a loop by hand."""

from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.optim import SGD

from lightning_vision.backbones import create
from lightning_vision.callbacks import Unfreeze

from .fits import Batches, Plain, batches_of, fitting
from .head_first import Parted
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar`, 5 groups, on batches of 64 for four epochs, one group more in each.

    Args:
        quick: One repetition of one step.
    """
    batches = batches_of(16 if quick else 64, 1 if quick else 3)
    sides: dict[str, Side] = {
        "plain": fitting(_module, batches, 4),
        "stock": fitting(Parted, batches, 4, partial(BackboneFinetuning, 3, initial_denom_lr=1.0)),
        "hand": partial(partial, _by_hand, batches),
        "ours": fitting(_module, batches, 4, Unfreeze),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what, ours = "four epochs, a group more in each", times["ours"]
    return [
        Row.slowdown(what, "four full epochs", ours, times["plain"], "cpu", "<= 0.80"),
        Row.slowdown(
            what, "Lightning's `BackboneFinetuning`, which thaws all in the fourth", ours, times["stock"], "cpu"
        ),
        Row.slowdown(what, "by hand", ours, times["hand"], "cpu", "<= 1.20"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


def _by_hand(batches: Batches) -> nn.Module:
    network = _module().network
    groups = [network.get_submodule(it) for it in ("head", "stages.2", "stages.1", "stages.0")]
    optimizer = SGD(network.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(4):
        network.eval().requires_grad_(False)
        for group in groups[: epoch + 1]:
            group.train().requires_grad_(True)
        for image, target in batches:
            optimizer.zero_grad()
            F.cross_entropy(network(image), target).backward()
            optimizer.step()
    return network
