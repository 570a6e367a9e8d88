"""Plain training under a Trainer, as the benchmarks of callbacks time it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from lightning_vision.backbones import create
from lightning_vision.datamodules import Digits

from .side_by_side import Side

__all__ = ["Asking", "Batches", "Online", "Plain", "an_epoch_of", "batches_of", "epochs_on_digits", "fitting"]

Batches = list[tuple[Tensor, Tensor]]


class Plain(LightningModule):
    """A classifier as one writes it in ten lines; logs nothing.

    Args:
        network: Maps images to logits.
        schedule: Makes a schedule that counts steps; None has none.
    """

    def __init__(self, network: nn.Module, schedule: Callable[[Optimizer], LRScheduler] | None = None) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        if self.schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"},
        }


class Asking(Plain):
    """Its step asks a teacher, which stands in a list and so is no part of it, and does nothing with the answer."""

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__(network)
        self.teachers = [teacher.eval()]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            self.teachers[0](batch[0])
        return super().training_step(batch)


class Online(Plain):
    """`Plain` whose targets are what a teacher says in every step.

    Args:
        network: Maps images to logits.
        teacher: Likewise.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        super().__init__(network)
        self.teachers = [teacher.eval()]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        with torch.no_grad():
            target = self.teachers[0](batch[0]).softmax(1)
        return super().training_step((batch[0], target))


def batches_of(size: int, count: int) -> Batches:
    """`count` batches of `size` random images, float32 `(size, 3, 32, 32)`, and classes 0..9."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, size, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (count, size), generator=generator)
    return list(zip(images, targets, strict=True))


def fitting(module: Callable[[], Plain], batches: Batches, epochs: int, *callbacks: Callable[[], Callback]) -> Side:
    """A side that trains what `module()` makes on all `batches`, `epochs` times, with what `callbacks` make."""

    def prepare() -> Callable[[], Plain]:
        fresh = module()
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[make() for make in callbacks],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

        def run() -> Plain:
            trainer.fit(fresh, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
            return fresh

        return run

    return prepare


def epochs_on_digits(epochs: int, *callbacks: Callable[[], Callback]) -> Side:
    """A side that trains a ResNet-8 on all digits, `epochs` times, with what `callbacks` make."""

    def prepare() -> Callable[[], None]:
        torch.manual_seed(0)
        module = Plain(create("resnet8_cifar", num_classes=10, in_channels=1))
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[make() for make in callbacks],
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return lambda: trainer.fit(module, datamodule=Digits(batch_size=64))

    return prepare


def an_epoch_of(module: Callable[[], Plain], data: LightningDataModule, quick: bool) -> Side:
    """A side that trains what `module()` makes on `data` for an epoch; quickly for two steps."""

    def prepare() -> Callable[[], None]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=2 if quick else 1.0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return partial(trainer.fit, module(), datamodule=data)

    return prepare
