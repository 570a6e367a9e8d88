"""What training a teacher along costs a step, beside two networks trained together by hand."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from lightning_vision.backbones import create
from lightning_vision.callbacks import BDKD
from lightning_vision.callbacks.distillation.bd_kd import bd_kd_loss

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

TEMPERATURE, TEACHER_KD_WEIGHT = 4.0, 0.1


class ByHand(Plain):
    """Two networks of one module and optimizer, compared as the method does."""

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__(network)
        self.teacher = teacher

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        ours, theirs = self.network(images), self.teacher(images)
        own = F.cross_entropy(ours, labels) + F.cross_entropy(theirs, labels)
        back = kl_divergence(_softened(ours.detach()), _softened(theirs)).mean()
        return own + _by_distributions(ours, theirs) + TEACHER_KD_WEIGHT * TEMPERATURE**2 * back


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` with a `resnet20_cifar`; then only compare answers of 128 images.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    # `Plain` calls its network and not itself.
    callback = partial(BDKD, _network("resnet20_cifar"), network="network")
    sides = {
        "alone": fitting(lambda: Plain(_network("resnet8_cifar")), batches, 1),
        "by hand": fitting(lambda: ByHand(_network("resnet8_cifar"), _network("resnet20_cifar")), batches, 1),
        "ours": fitting(lambda: Plain(_network("resnet8_cifar")), batches, 1, callback),
    }
    times = {name: it["cpu"] for name, it in take_turns(sides, *(1, 0) if quick else (15, 1)).items()}
    against = "both networks and `kl_divergence` in `training_step`"
    return [
        Row.slowdown("`BDKD`", against, times["ours"], times["by hand"], "cpu", "<= 1.03"),
        Row.slowdown("`BDKD`", "the student alone", times["ours"], times["alone"], "cpu"),
        *(_loss_row(classes, *(1, 0) if quick else (21, 1)) for classes in (10, 1000)),
    ]


def _loss_row(classes: int, repetitions: int, warmup: int) -> Row:
    student, teacher = torch.randn(2, 128, classes, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()

    def stepped(loss: Callable[[], Tensor]) -> Tensor:
        student.grad = None
        loss().backward()
        assert student.grad is not None
        return student.grad

    sides = {
        "theirs": lambda: stepped(lambda: _by_distributions(student, teacher)),
        "ours": lambda: stepped(lambda: bd_kd_loss(student, teacher, temperature=TEMPERATURE)),
    }
    torch.testing.assert_close(sides["ours"](), sides["theirs"](), rtol=1e-3, atol=1e-6)
    times = take_turns({side: unprepared(run) for side, run in sides.items()}, repetitions, warmup)
    what, against = f"`bd_kd_loss` and its gradient, {classes} classes", "`Categorical` and `kl_divergence` twice"
    return Row.slowdown(what, against, times["ours"]["cpu"], times["theirs"]["cpu"], "cpu", "<= 1.00")


def _by_distributions(student: Tensor, teacher: Tensor) -> Tensor:
    p_s, p_t = _softened(student), _softened(teacher.detach())
    h_s, h_t = p_s.entropy().detach(), p_t.entropy()
    each = h_t * kl_divergence(p_t, p_s) + h_s * kl_divergence(p_s, p_t)
    return TEMPERATURE**2 * (2 * each / (h_s + h_t)).mean()


def _softened(logits: Tensor) -> Categorical:
    return Categorical(logits=logits / TEMPERATURE)


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, num_classes=10, in_channels=3)
