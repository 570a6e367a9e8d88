"""What a frozen part's check costs: one look beside copies that are compared, and steps with and without it."""

import copy
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import FrozenPartCheck
from lightning_vision.callbacks.verification._tensors import fingerprints

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


class Taught(Plain):
    """A classifier beside whose network a frozen copy stands."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.teacher = copy.deepcopy(network).requires_grad_(False).eval()


def rows(quick: bool) -> list[Row]:
    """Look at ResNet-50's tensors, and train `resnet20_cifar` for 100 steps of 32 images.

    Args:
        quick: One repetition with a small network and two steps.
    """
    network = timm.create_model("test_resnet" if quick else "resnet50")
    tensors: list[Tensor] = [it.detach() for it in [*network.parameters(), *network.buffers()]]
    copies = [it.clone() for it in tensors]
    turns = (1, 0) if quick else (15, 1)
    looks = take_turns(
        {
            "ours": unprepared(lambda: fingerprints(tensors).tolist()),
            "copies": unprepared(lambda: [torch.equal(*it) for it in zip(tensors, copies, strict=True)]),
        },
        *turns,
    )
    batches: Any = batches_of(32, 2 if quick else 100)
    made = partial(create, "resnet20_cifar", num_classes=10, in_channels=3)
    plain = partial(fitting, lambda: Taught(made()), batches, 1)
    sides = {"plain": plain()} | {
        str(every): plain(partial(FrozenPartCheck, ["teacher"], every_n_steps=every)) for every in (100, 1)
    }
    fits = take_turns(sides, *((1, 0) if quick else (5, 1)))
    size = sum(it.numel() for it in tensors) / 1e6
    what, ours, copied = f"a look at {size:.1f} million numbers", looks["ours"]["cpu"], looks["copies"]["cpu"]
    told = [Row.slowdown(what, "`torch.equal` with copies of them all", ours, copied, "cpu")]
    for every, bar in ((100, "<= 1.02"), (1, "")):
        what = f"{len(batches)} steps, a look every {every} steps"
        told.append(Row.slowdown(what, "without it", fits[str(every)]["cpu"], fits["plain"]["cpu"], "cpu", bar))
    return told
