"""What distillation costs a step, beside a step written by hand, and what its divergence costs beside torch's own."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from lightning_vision.backbones import create
from lightning_vision.callbacks import Distillation, kd_loss

from .fits import Asking, Plain, batches_of, fitting
from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

TEMPERATURE = 4.0


class ByHand(Asking):
    """A step as the authors' formula has it."""

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        with torch.no_grad():
            soft = (self.teachers[0](images) / TEMPERATURE).softmax(dim=1)
        logits = self.network(images)
        ours = (logits / TEMPERATURE).log_softmax(dim=1)
        return F.cross_entropy(logits, labels) + TEMPERATURE**2 * F.kl_div(ours, soft, reduction="batchmean")


class Clock(Callback):
    """Processor time from the first batch to the last: what is made once a fit is not counted to its steps."""

    def __init__(self, spent: list[float]) -> None:
        self.spent = spent

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begin = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.spent.append(time.process_time() - self.begin)


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` on batches of 64 with a `resnet20_cifar`; then only compare answers of 128 images.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    # `Plain` calls its network and not itself.
    taught = partial(Distillation, network="network", temperature=TEMPERATURE)
    ours: dict[str, Callable[[], Callback]] = {
        "kd": lambda: taught(_network("resnet20_cifar")),
        "hints": lambda: taught(_network("resnet20_cifar"), layers={"stages.2": "stages.2"}),
    }
    makers: dict[str, tuple[Callable[[], Plain], list[Callable[[], Callback]]]] = {
        "alone": (lambda: Plain(_network("resnet8_cifar")), []),
        "asking": (lambda: Asking(_network("resnet8_cifar"), _network("resnet20_cifar")), []),
        "by hand": (lambda: ByHand(_network("resnet8_cifar"), _network("resnet20_cifar")), []),
        **{name: (lambda: Plain(_network("resnet8_cifar")), [make]) for name, make in ours.items()},
    }
    seconds: dict[str, list[float]] = {side: [] for side in makers}
    sides = {
        side: fitting(module, batches, 1, *callbacks, partial(Clock, seconds[side]))
        for side, (module, callbacks) in makers.items()
    }
    repetitions, warmup = (1, 0) if quick else (11, 1)
    take_turns(sides, repetitions, warmup)
    steps = {side: [it / len(batches) for it in each[warmup:]] for side, each in seconds.items()}
    step, teacher = "a step with `Distillation`", "the student's step and a bare forward of the teacher"
    return [
        Row.slowdown(step, teacher, steps["kd"], steps["asking"], "cpu", "<= 1.03"),
        Row.slowdown(step, "the same written into `training_step`", steps["kd"], steps["by hand"], "cpu", "<= 1.03"),
        Row.slowdown("with hints of the last stage, too", teacher, steps["hints"], steps["asking"], "cpu"),
        Row.slowdown(step, "the student alone", steps["kd"], steps["alone"], "cpu"),
        _loss_row(*(1, 0) if quick else (31, 1)),
    ]


def _loss_row(repetitions: int, warmup: int) -> Row:
    student, teacher = torch.randn(2, 128, 1000, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()

    def stepped(loss: Callable[[], Tensor]) -> Tensor:
        student.grad = None
        loss().backward()
        assert student.grad is not None
        return student.grad

    def by_distributions() -> Tensor:
        softened = [Categorical(logits=it / TEMPERATURE) for it in (teacher, student)]
        return TEMPERATURE**2 * kl_divergence(*softened).mean()

    sides = {
        "theirs": lambda: stepped(by_distributions),
        "ours": lambda: stepped(lambda: kd_loss(student, teacher, TEMPERATURE)),
    }
    torch.testing.assert_close(sides["ours"](), sides["theirs"](), rtol=1e-3, atol=1e-6)
    times = take_turns({side: unprepared(run) for side, run in sides.items()}, repetitions, warmup)
    what, against = "`kd_loss` and its gradient, 1000 classes", "torch's `Categorical` and `kl_divergence`"
    return Row.slowdown(what, against, times["ours"]["cpu"], times["theirs"]["cpu"], "cpu", "<= 1.00")


def _network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create(name, num_classes=10, in_channels=3)
