"""Training with RegMixup beside the loss written out in a `training_step`, mixtures by torchvision."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.backbones import create
from lightning_vision.callbacks import MixUp, RegMixup

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns

__all__ = ["rows"]


class ByHand(Plain):
    """RegMixup in its own step: both halves in one forward pass, soft labels for the mixed one."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.mixup = v2.MixUp(alpha=10.0, num_classes=10)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, target = batch
        mixed, soft = self.mixup(image, target)
        plain, below = self.network(torch.cat([image, mixed])).chunk(2)
        return F.cross_entropy(plain, target) + F.cross_entropy(below, soft)


def rows(quick: bool) -> list[Row]:
    """`resnet20_cifar` on batches of 64 images of 3x32x32, eight to a turn.

    Args:
        quick: One repetition of one batch of 8.
    """
    batches = batches_of(8, 1) if quick else batches_of(64, 8)

    def network() -> Any:
        torch.manual_seed(0)
        return create("resnet20_cifar", num_classes=10, in_channels=3)

    sides = {
        "ours": fitting(lambda: Plain(network()), batches, 1, RegMixup),
        "torchvision": fitting(lambda: ByHand(network()), batches, 1),
        "MixUp": fitting(lambda: Plain(network()), batches, 1, MixUp),
        "plain": fitting(lambda: Plain(network()), batches, 1),
    }
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (21, 2)).items()}
    own = "a fit with `RegMixup`"
    return [
        Row.slowdown(own, "torchvision, two losses by hand", cpu["ours"], cpu["torchvision"], "cpu", "<= 1.05"),
        Row.slowdown(own, "one with `MixUp`, half the images a step", cpu["ours"], cpu["MixUp"], "cpu"),
        Row.slowdown(own, "a plain fit, half the images a step", cpu["ours"], cpu["plain"], "cpu"),
    ]
