"""What several teachers and a discriminator cost a step, beside the same written by hand."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import BCEWithLogitsLoss, KLDivLoss

from lightning_vision.backbones import create
from lightning_vision.callbacks import MEALV2
from lightning_vision.callbacks.distillation.meal_v2 import AnswerDiscriminator

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns

__all__ = ["rows"]

TEACHERS = 2


class ByHand(Plain):
    """Learns from teachers that stand outside of it; a discriminator, if there is one, is a part of it."""

    def __init__(self, network: nn.Module, teachers: list[nn.Module], adversarial: bool) -> None:
        super().__init__(network)
        self.taught_by = tuple(teachers)
        self.discriminator = AnswerDiscriminator(10, 64) if adversarial else None

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, _ = batch
        ours = self.network(images).log_softmax(dim=1)
        with torch.no_grad():
            mean = torch.stack([teacher(images).softmax(dim=1) for teacher in self.taught_by]).mean(dim=0)
        loss: Tensor = KLDivLoss(reduction="batchmean")(ours, mean)
        if self.discriminator is None:
            return loss
        answer = ours.clone()
        answer.register_hook(lambda gradient: -gradient)
        told = self.discriminator(torch.cat([answer, mean.log()]))
        labels = torch.cat([told.new_zeros(len(images)), told.new_ones(len(images))])
        return loss + BCEWithLogitsLoss()(told, labels)


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` by two `resnet20_cifar`.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    teachers = [_network("resnet20_cifar", seed).eval() for seed in range(1, 1 + TEACHERS)]

    def student() -> nn.Module:
        return _network("resnet8_cifar", 0)

    # `Plain` calls its network and not itself.
    callback = partial(MEALV2, teachers, network="network")
    sides = {
        "alone": fitting(lambda: Plain(student()), batches, 1),
        "by hand": fitting(lambda: ByHand(student(), teachers, adversarial=False), batches, 1),
        "by hand, both": fitting(lambda: ByHand(student(), teachers, adversarial=True), batches, 1),
        "ours": fitting(lambda: Plain(student()), batches, 1, partial(callback, discriminator_weight=0.0)),
        "ours, both": fitting(lambda: Plain(student()), batches, 1, callback),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (15, 1)).items()}
    hand, both = "teachers and `KLDivLoss` in `training_step`", "the same with `BCEWithLogitsLoss`"
    return [
        Row.slowdown("`MEALV2`, no discriminator", hand, times["ours"], times["by hand"], "cpu", "<= 1.03"),
        Row.slowdown("`MEALV2`", both, times["ours, both"], times["by hand, both"], "cpu", "<= 1.03"),
        Row.slowdown("the discriminator", "`MEALV2` without", times["ours, both"], times["ours"], "cpu"),
        Row.slowdown("`MEALV2`", "the student alone, by labels", times["ours, both"], times["alone"], "cpu"),
    ]


def _network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create(name, num_classes=10, in_channels=3)
