"""What specialists cost a step, beside a training step written by hand."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import KLDivLoss

from lightning_vision.backbones import create
from lightning_vision.callbacks import KnowledgeConcentration

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns

__all__ = ["rows"]

VERTICALS = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
TEMPERATURE = 4.0


class ByHand(Plain):
    """Adds what the callback adds, in its own `training_step`; teachers stand outside of it."""

    def __init__(self, network: nn.Module, teachers: list[nn.Module]) -> None:
        super().__init__(network)
        self.taught_by = tuple(teachers)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss, divergence = F.cross_entropy(logits, labels), KLDivLoss(reduction="none")
        for teacher, classes in zip(self.taught_by, VERTICALS, strict=True):
            with torch.no_grad():
                said = (teacher(images) / TEMPERATURE).softmax(dim=1)
            ours = (logits[:, classes] / TEMPERATURE).log_softmax(dim=1)
            own = (labels // 5 == classes[0] // 5).float()
            loss = loss + TEMPERATURE**2 * (divergence(ours, said).sum(dim=1) * own).mean()
        return loss


def rows(quick: bool) -> list[Row]:
    """Train `resnet8_cifar` by two `resnet20_cifar`, on batches of 64.

    Args:
        quick: One repetition of two steps.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 8)
    teachers = [_network("resnet20_cifar", 5, seed).eval() for seed in (1, 2)]

    def student() -> nn.Module:
        return _network("resnet8_cifar", 10, 0)

    # `Plain` calls its network and not itself.
    callback = partial(KnowledgeConcentration, teachers, VERTICALS, temperature=TEMPERATURE, network="network")
    sides = {
        "by hand": fitting(lambda: ByHand(student(), teachers), batches, 1),
        "ours": fitting(lambda: Plain(student()), batches, 1, callback),
        "paced": fitting(lambda: Plain(student()), batches, 1, partial(callback, pace_steps=1000)),
        "every": fitting(lambda: Plain(student()), batches, 1, partial(callback, own_images=False)),
    }
    times = take_turns(sides, *(1, 0) if quick else (9, 1))
    own, paced, every, hand = (times[side]["cpu"] for side in ("ours", "paced", "every", "by hand"))
    against = "two teachers and `KLDivLoss` in `training_step`"
    return [
        Row.slowdown("`KnowledgeConcentration`, two teachers", against, own, hand, "cpu", "<= 1.03"),
        Row.slowdown("the same, at a pace", against, paced, hand, "cpu", "<= 1.03"),
        Row.slowdown("the same, of all images", against, every, hand, "cpu"),
    ]


def _network(name: str, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return create(name, num_classes=classes, in_channels=3)
