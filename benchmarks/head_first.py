"""What training the head first saves: a step of the first phase against a full one, both phases against Lightning's."""

from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import nn
from torch.optim import SGD, Optimizer

from lightning_vision.backbones import create
from lightning_vision.callbacks import HeadFirst

from .fits import Batches, Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


class Parted(Plain):
    """ResNet-20 as `BackboneFinetuning` wants it, with a `backbone`; its optimizer gets what is not frozen."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(create("resnet20_cifar", num_classes=0, in_channels=3), nn.Linear(64, 10)))

    @property
    def backbone(self) -> nn.Module:
        return self.network[0]  # type: ignore[index]  # a Sequential

    def configure_optimizers(self) -> Optimizer:
        return SGD([it for it in self.parameters() if it.requires_grad], lr=0.01, momentum=0.9)


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64: one epoch with the head alone, then two of which it is the first.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(64, 2 if quick else 8)
    head = partial(HeadFirst, epochs=1, head="network.1")
    sides: dict[str, Side] = {
        "plain": fitting(Parted, batches, 1),
        "head": fitting(Parted, batches, 1, head),
        "stock": fitting(Parted, batches, 2, partial(BackboneFinetuning, 1, initial_denom_lr=1.0)),
        "hand": partial(partial, _by_hand, batches),
        "ours": fitting(Parted, batches, 2, head),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    ours, what = times["ours"], "two epochs, the head alone in the first"
    return [
        Row.slowdown("an epoch of the head alone", "a full epoch", times["head"], times["plain"], "cpu", "<= 0.50"),
        Row.slowdown(what, "Lightning's `BackboneFinetuning`", ours, times["stock"], "cpu", "<= 1.00"),
        Row.slowdown(what, "by hand, features without gradient", ours, times["hand"], "cpu", "<= 1.20"),
    ]


def _by_hand(batches: Batches) -> nn.Module:
    module = Parted()
    features, head = module.network[0], module.network[1]  # type: ignore[index]  # a Sequential
    optimizer = module.configure_optimizers()
    for epoch in range(2):
        module.train()
        features.train(epoch > 0)
        for image, target in batches:
            with torch.set_grad_enabled(epoch > 0):
                seen = features(image)
            optimizer.zero_grad()
            F.cross_entropy(head(seen), target).backward()
            optimizer.step()
    return module
