"""The batch seam: a method that changes each training batch once, on the device, before anybody reads it."""

import inspect
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from ._around import Around
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
        name: See `Method`.

    Raises:
        ValueError: seed is no integer >= 0; at set-up, if `training_step` fetches its batches itself; at the first
            batch, if images or labels are not where they should be.
    """

    place: ClassVar[Place] = Place.BATCH

    def __init__(self, seed: int, image_key: str, target_key: str, name: str | None = None) -> None:
        super().__init__(name)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"{type(self).__name__}: seed must be an integer >= 0, got {seed!r}.")
        self.seed, self.image_key, self.target_key = seed, image_key, target_key
        self.fields = Fields(type(self).__name__, image_key, target_key)
        self._batches = 0

    @property
    def off(self) -> bool:
        """Whether the settings are neutral: nothing is installed."""
        return False

    @abstractmethod
    def change(self, batch: Any, random: np.random.Generator) -> Any:
        """The changed batch, a new container (`self.fields.replaced`), or the same object if nothing is to do."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.global_step == 0:
            self._batches = 0
        if not self.off and "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            name = type(self).__name__
            raise ValueError(
                f"{name}: training_step(dataloader_iter) fetches its batches itself, so {name} cannot change them; "
                "write training_step(batch, batch_idx)."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off:
            self.install(trainer)

    def install(self, trainer: Trainer) -> None:
        """Act on the batches of this run; of several methods, the one that is installed first acts first."""

        def change(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            batch = proceed(*args, **kwargs)
            if not trainer.training or trainer.sanity_checking or batch is None:
                return batch
            random = np.random.default_rng((self.seed, trainer.global_rank, self._batches))
            self._batches += 1
            return self.change(batch, random)

        self.undo_later(Around(trainer.strategy, "batch_to_device", change).undo)

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self._batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches = state_dict["batches"]
