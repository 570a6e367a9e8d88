"""A module, a datamodule and callbacks as other people write them, small enough to drive the command with."""

from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2.functional import rotate

from lightning_vision.callbacks.hooks.method import Method, Place
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._sets import ArrayImages

__all__ = ["Counted", "NamedCounter", "NoValidation", "StepCounter", "TiltedDigits", "Touchy", "ToyData", "ToyModule"]


class ToyModule(LightningModule):
    """Linear regression with sizes that may come from the data."""

    def __init__(
        self,
        num_classes: int | None = None,
        in_channels: int | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.sizes = num_classes, in_channels
        self.optimizer = optimizer
        self.network = nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.network(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/loss", self.training_step(batch))

    def test_step(self, batch: list[Tensor]) -> None:
        self.log("test/loss", self.training_step(batch))

    def configure_optimizers(self) -> Optimizer:
        return self.optimizer(self.parameters())


class Touchy(ToyModule):
    """Its loss is no number once it has seen training images brighter than `limit`, a mean of normalised pixels."""

    def __init__(self, limit: float = 1.0, optimizer: OptimizerCallable = torch.optim.AdamW) -> None:
        super().__init__(optimizer=optimizer)
        self.limit = limit
        self.network = nn.Linear(64, 1)
        self.register_buffer("spoilt", torch.zeros(()))

    def training_step(self, batch: list[Tensor]) -> Tensor:
        if batch[0].mean() > self.limit:
            self.spoilt.fill_(torch.nan)
        return self.network(batch[0].flatten(1)).square().mean() + self.spoilt

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val/loss", self.network(batch[0].flatten(1)).square().mean() + self.spoilt)


class ToyData(LightningDataModule):
    """Eight points; knows its number of classes but not its channels."""

    num_classes = 7

    def loader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.arange(16.0).reshape(8, 2)), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = loader


class Counted(ToyData):
    """Says how many points of each class there are, in a manner of its own.

    Args:
        manner: One of the keys of `MANNERS`.
    """

    MANNERS: ClassVar[dict[str, Any]] = {
        "whole numbers": {"train": {0: 4, 1: 4}, "val": {1: 8}},
        "one class": {"train": {0: 4}},
        "tensor": torch.tensor([4, 4]),
        "list": {"train": [4, 4]},
        "one level": {"a": 4, "b": 4},
        "nothing": {"train": {}},
        "shares": {"train": {"a": 0.5, "b": 0.5}},
    }

    def __init__(self, manner: str) -> None:
        super().__init__()
        self.class_counts = self.MANNERS[manner]


class StepCounter(Callback):
    """Counts batches up to a limit.

    Args:
        limit: Batches after which it stops counting.
        start: First count.
    """

    def __init__(self, limit: int = 100, start: int = 0) -> None:
        self.limit, self.count = limit, start

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.count = min(self.count + 1, self.limit)


class NamedCounter(Method):
    """Counts batches in steps of its own and keeps the count in checkpoints.

    Args:
        by: What a batch counts for.
        name: Part of the state key.
    """

    place = Place.RUN
    neutral = ({"by": 0},)

    def __init__(self, by: int = 1, name: str | None = None) -> None:
        super().__init__(name)
        self.by, self.count = by, 0

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        self.count += self.by

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.count = state_dict["count"]


class LargerDigits(Digits):
    """Digits that say they are 16 pixels wide."""

    image_size = (16, 16)


class TiltedDigits(Digits):
    """Digits that stand upright in training and lean by 30 degrees, to either side, in validation."""

    def load(self) -> None:
        super().load()
        assert isinstance(self.val_set, ArrayImages) and self.val_set.targets is not None
        leaning = [rotate(image, (-30.0, 30.0)[number % 2]) for number, image in enumerate(self.val_set.images)]
        self.val_set = ArrayImages(torch.stack(leaning), self.val_set.targets)


class NoValidation(Digits):
    """Digits without a validation split."""

    def load(self) -> None:
        super().load()
        self.val_set = None
