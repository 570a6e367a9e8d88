"""What training batch norm alone costs: a run against a full one, Lightning's way, and random weights in its stead."""

from functools import partial

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from torch.optim import Optimizer

from lightning_vision.backbones import create
from lightning_vision.callbacks import BatchNormOnly

from .fits import Plain, batches_of, fitting
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
        "stock": fitting(_module, batches, 1, _TrainBatchNorm),
        "ours": fitting(_module, batches, 1, BatchNormOnly),
        "control": fitting(_module, batches, 1, partial(BatchNormOnly, control=True)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    what, ours = "batch norm alone", times["ours"]
    return [
        Row.slowdown(what, "a full epoch", ours, times["plain"], "cpu", "<= 1.02"),
        Row.slowdown(
            what, "Lightning's `BaseFinetuning`, all but batch norm frozen", ours, times["stock"], "cpu", "<= 1.05"
        ),
        Row.slowdown("random weights", "a full epoch", times["control"], times["plain"], "cpu", "<= 1.10"),
    ]


def _module() -> Plain:
    torch.manual_seed(0)
    return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))


class _TrainBatchNorm(BaseFinetuning):
    """Lightning's way to freeze all but batch norm."""

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        self.freeze(pl_module, train_bn=True)

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Nothing thaws."""
