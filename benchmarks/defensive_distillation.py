"""What both fits of defensive distillation cost a step, and its loss beside timm's for soft labels."""

from functools import partial

import torch
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import DefensiveDistillation, tempered_cross_entropy

from .fits import Asking, Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train `resnet20_cifar` on batches of 64 at T = 20, by itself and taught by `resnet8_cifar`.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(4 if quick else 64, 2 if quick else 8)
    taught = partial(DefensiveDistillation, _network("resnet8_cifar"), network="network")
    teacher, theirs = _network("resnet8_cifar"), SoftTargetCrossEntropy()
    ours, soft = torch.randn(2, 16 if quick else 512, 1000, generator=torch.Generator().manual_seed(0))
    sides = {
        "plain": fitting(lambda: Plain(_network("resnet20_cifar")), batches, 1),
        "asking": fitting(lambda: Asking(_network("resnet20_cifar"), teacher), batches, 1),
        "first": fitting(
            lambda: Plain(_network("resnet20_cifar")), batches, 1, partial(DefensiveDistillation, network="network")
        ),
        "second": fitting(lambda: Plain(_network("resnet20_cifar")), batches, 1, taught),
        "timm": unprepared(lambda: theirs(ours / 20, (soft / 20).softmax(1))),
        "loss": unprepared(lambda: tempered_cross_entropy(ours, soft, 20.0)),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    torch.testing.assert_close(tempered_cross_entropy(ours, soft, 20.0), theirs(ours / 20, (soft / 20).softmax(1)))
    against = "timm's `SoftTargetCrossEntropy`, the temperature by hand"
    return [
        Row.slowdown("the first fit", "the step alone", times["first"], times["plain"], "cpu", "<= 1.03"),
        Row.slowdown(
            "the second fit", "the step and a bare teacher", times["second"], times["asking"], "cpu", "<= 1.03"
        ),
        Row.slowdown("`tempered_cross_entropy`", against, times["loss"], times["timm"], "cpu", "<= 1.10"),
    ]


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, num_classes=10, in_channels=3)
