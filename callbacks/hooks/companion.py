"""The companion seam: something small that learns from the features of training batches, beside the module.

Public hooks used: those of `probing.py`, `on_train_batch_start`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._checks import takes_batches
from ._readings import features_of, labels_in
from ._unnoticed import as_if_nobody_looked
from .probing import Probing

__all__ = ["Companion"]


class Companion(Probing):
    """Learns from the features and classes of every batch that the module is about to train on.

    The batch goes through `features(images)` once more, in evaluation mode and without gradients, before its
    `training_step`; gradients, buffers, random streams, modes and logs of the module are as if it had not. What learns
    belongs to the callback: the module, its optimizers and files know nothing of it. It takes one step a micro-batch.

    Args:
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: at set-up, if `training_step` fetches its batches itself; in the first batch, if it has no classes.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._restored: dict[str, Any] = {}

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether there is something that learns."""

    @abstractmethod
    def begin(self, features: Tensor) -> None:
        """Make what learns, for features like these `(B, D)`, on their device; it draws nothing."""

    @abstractmethod
    def gradient(self, features: Tensor, targets: Tensor) -> Tensor:
        """The sum over images of their gradients, and last the number of images that count; one vector.

        Args:
            features: Float32 `(B, D)`, finite.
            targets: Classes, int64 `(B,)`; negative ones are not known.
        """

    @abstractmethod
    def step(self, gradient: Tensor) -> None:
        """Learn from what `gradient` returned, summed over all ranks."""

    @abstractmethod
    def forget(self) -> None:
        """Leave nothing of what learned."""

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """What has learned, as plain data and tensors on the CPU."""

    @abstractmethod
    def take_back(self, kept: Mapping[str, Any]) -> None:
        """Go on from what `kept` once returned, after `begin`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self.forget()
            self._restored = {}
        if stage == "fit" and not self.off:
            takes_batches(type(self).__name__, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.off:
            return
        kind = type(self).__name__
        with as_if_nobody_looked(trainer, pl_module):
            features = features_of(kind, pl_module, self.fields.image(batch))
        targets = labels_in(self.fields, batch, len(features))
        if targets is None:
            raise self.unlabelled()
        self.prepare(features)
        # A step that overflowed must not end what learns.
        finite = features.isfinite().all(1)
        summed = self.gradient(features.nan_to_num(0.0, 0.0, 0.0), targets.where(finite, -1))
        if trainer.world_size > 1:
            dist.all_reduce(summed)
        self.step(summed)

    def prepare(self, features: Tensor) -> None:
        """Begin, or go on from a file, where nothing has begun."""
        if not self.begun:
            self.begin(features)
            if self._restored:
                self.take_back(self._restored)
                self._restored = {}

    def state_dict(self) -> dict[str, Any]:
        learned = self.kept() if self.begun else self._restored
        return super().state_dict() | ({"learned": learned} if learned else {})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self.forget()
        self._restored = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._restored = state_dict.get("learned", {})
