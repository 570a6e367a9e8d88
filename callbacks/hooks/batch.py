"""The batch seam: a method that changes each training batch once, on the device, before anybody reads it."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from ._around import Around
from ._checks import takes_batches, whole
from ._fields import Fields
from .method import Method, Place

__all__ = ["Batch"]


class Batch(Method):
    """Base of callbacks that change the batch.

    `change` is called once per training micro-batch, after the transfer to the device; the training step, other
    callbacks and replays of the batch see what it returned. Batches of validation, test, prediction and the sanity
    check are left alone. Its random draws come from a stream of their own, a pure function of (seed, rank, number of
    training micro-batches so far); that number is all the state there is.

    Args:
        seed: Seed of the random draws, >= 0.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        acts_last: Whether it acts after the callbacks of this seam that say no.
        name: Part of the state key.

    Raises:
        ValueError: `seed` is no integer >= 0; at set-up, if `training_step` fetches its batches itself; at the first
            batch, if images or labels are not where they should be.
    """

    place = Place.BATCH

    def __init__(self, *, seed: int, image_key: str, target_key: str, acts_last: bool = False, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "seed", seed, 0)
        self.seed, self.image_key, self.target_key, self.acts_last = seed, image_key, target_key, acts_last
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self.epoch = 0  # of the batch that is changed
        self._batches = 0
        self._evaluates = False

    @abstractmethod
    def change(self, batch: Any, random: np.random.Generator) -> Any:
        """The changed batch, a new container (`self.fields.replaced`), or the same object if nothing is to do."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.global_step == 0:
            self._batches = 0
        if not self.off:
            takes_batches(type(self).__name__, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not (self.off or self.acts_last):
            self._install(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.acts_last and not self.off:
            self._install(trainer)

    def _install(self, trainer: Trainer) -> None:
        # Of several callbacks the one that is installed first acts first.
        def change(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            batch = proceed(*args, **kwargs)
            if not trainer.training or trainer.sanity_checking or batch is None:
                return batch
            random = np.random.default_rng((self.seed, trainer.global_rank, self._batches))
            self._batches += 1
            self.epoch = trainer.current_epoch
            return self.change(batch, random)

        self.undo_later(Around(trainer.strategy, "batch_to_device", change).undo)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batches": self._batches}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._evaluates = trainer.state.fn != TrainerFn.FITTING

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Lightning also restores callbacks when it validates or tests a file, which is no reason to draw again.
        if not self._evaluates:
            self._batches = state_dict["batches"]
        self._evaluates = False
