"""What training batch norm alone costs: a run against a full one, a loop by hand, and random weights in its stead."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from lightning_vision.backbones import create
from lightning_vision.callbacks import BatchNormOnly

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64 for an epoch.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(16 if quick else 64, 2 if quick else 8)
    sides: dict[str, Side] = {
        "plain": fitting(_module, batches, 1),
        "hand": partial(partial, _by_hand, batches),
        "ours": fitting(_module, batches, 1, BatchNormOnly),
        "control": fitting(_module, batches, 1, partial(BatchNormOnly, control=True)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what, ours = "batch norm alone", times["ours"]
    return [
        Row.slowdown(what, "a full epoch", ours, times["plain"], "cpu", "<= 1.02"),
        Row.slowdown(what, "by hand", ours, times["hand"], "cpu", "<= 1.20"),
        Row.slowdown("random weights", "a full epoch", times["control"], times["plain"], "cpu", "<= 1.10"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


def _by_hand(batches: Batches) -> nn.Module:
    network = _module().network.requires_grad_(False)
    norms = [it for it in network.modules() if isinstance(it, nn.BatchNorm2d)]
    trained = [it.requires_grad_(True) for norm in norms for it in norm.parameters()]
    optimizer = SGD(trained, lr=0.01, momentum=0.9)
    for image, target in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(image), target).backward()
        optimizer.step()
    return network
