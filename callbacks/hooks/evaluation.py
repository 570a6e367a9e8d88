"""What the seams share that act in validation and test: one set of hooks, the first loader, the stage's name.

Public hooks used: start, epoch end and end of a validation and of a test, start and end of their batches.
"""

import math
from abc import abstractmethod
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from ._checks import whole
from .method import Method, Place

__all__ = ["Evaluation", "Stage", "epochs_apart"]

Stage = Literal["val", "test"]


class Evaluation(Method):
    """Watches validations and tests; of several loaders the first.

    Args:
        every_n_epochs: While fitting it watches validations of every n-th epoch, from the first on, or the next one
            where such an epoch has none; `validate` and `test` are always watched. At 0 nothing is.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: `every_n_epochs` is no integer >= 0.
    """

    place = Place.OBSERVE
    neutral = ({"every_n_epochs": 0},)

    def __init__(self, *, every_n_epochs: int, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "every_n_epochs", every_n_epochs, 0)
        self.every_n_epochs = every_n_epochs

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """A validation, the sanity check's included, or a test that is watched starts."""

    def batch_starts(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        """A step on a batch of the first loader is about to run."""

    @abstractmethod
    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        """A step on a batch of the first loader is over."""

    def epoch_ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """All batches are over; averaged weights, if there are some, still stand in the module."""

    def ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        """The validation or test is over, also the module's own hooks; what it logged is in `callback_metrics`."""

    def due(self, trainer: Trainer) -> bool:
        """Whether the validation or test at hand is watched."""
        if self.off:
            return False
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True
        return trainer.current_epoch % self.every_n_epochs < epochs_apart(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        if self.due(trainer):
            self.starts(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        if self.due(trainer):
            self.starts(trainer, pl_module, "test")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self.due(trainer):
            self.batch_starts(trainer, pl_module, batch, batch_idx, "val")

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self.due(trainer):
            self.batch_starts(trainer, pl_module, batch, batch_idx, "test")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self.due(trainer):
            self.batch_ends(trainer, pl_module, outputs, batch, batch_idx, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0 and self.due(trainer):
            self.batch_ends(trainer, pl_module, outputs, batch, batch_idx, "test")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if self.due(trainer):
            self.epoch_ends(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_epoch_end(trainer, pl_module)
        if self.due(trainer):
            self.epoch_ends(trainer, pl_module, "test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.due(trainer):
            self.ends(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        if self.due(trainer):
            self.ends(trainer, pl_module, "test")


def epochs_apart(trainer: Trainer) -> int:
    """Epochs between two validations: more than one by `check_val_every_n_epoch`, or if they are told in batches."""
    if trainer.check_val_every_n_epoch is not None:
        return trainer.check_val_every_n_epoch
    epochs = float(trainer.val_check_batch or 0) / float(trainer.num_training_batches)
    return max(1, math.ceil(epochs)) if math.isfinite(epochs) else 1
