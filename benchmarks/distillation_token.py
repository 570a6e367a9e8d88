"""What a distillation token costs a step, beside the same by hand with timm's two outputs, and a bare teacher."""

from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import DistillationToken

from .fits import Asking, Plain, batches_of, fitting
from .side_by_side import Row, take_turns

__all__ = ["rows"]


class ByHand(Plain):
    """Reads both heads from timm's network and asks the teacher itself."""

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__(network)
        network.set_distilled_training(True)  # type: ignore[operator]  # timm's method
        # In a list, so that it is no part of the module.
        self.teachers = [teacher.eval()]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        own, other = self.network(batch[0])
        with torch.no_grad():
            decided = self.teachers[0](batch[0]).argmax(1)
        return F.cross_entropy(own, batch[1]) / 2 + F.cross_entropy(other, decided) / 2


def rows(quick: bool) -> list[Row]:
    """Train a small DeiT on batches of 64, taught by `resnet8_cifar`.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(4 if quick else 64, 2 if quick else 16)
    token = partial(DistillationToken, _teacher(), network="network")
    weighted = partial(token, beta=0.9999, class_counts=[100] * 10)
    sides = {
        "plain": fitting(lambda: Plain(_student()), batches, 1),
        "asking": fitting(lambda: Asking(_student(), _teacher()), batches, 1),
        "by hand": fitting(lambda: ByHand(_student(), _teacher()), batches, 1),
        "ours": fitting(lambda: Plain(_student()), batches, 1, token),
        "weighted": fitting(lambda: Plain(_student()), batches, 1, weighted),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    hand, bare = "timm's `set_distilled_training`, the loss by hand", "the student's step and a bare teacher"
    return [
        Row.slowdown("`DistillationToken`", hand, times["ours"], times["by hand"], "cpu", "<= 1.05"),
        Row.slowdown("`DistillationToken`", bare, times["ours"], times["asking"], "cpu", "<= 1.03"),
        Row.slowdown("the same, decisions weighted", bare, times["weighted"], times["asking"], "cpu", "<= 1.03"),
        Row.slowdown("`DistillationToken`", "the student's step alone", times["ours"], times["plain"], "cpu"),
    ]


def _student() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 4, "num_heads": 3}
    student: nn.Module = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, **sizes)
    return student


def _teacher() -> nn.Module:
    torch.manual_seed(1)
    return create("resnet8_cifar", num_classes=10, in_channels=3)
