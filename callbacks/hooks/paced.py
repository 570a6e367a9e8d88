"""The paced seam: the batch seam for methods whose change of the batch depends on how much of the training is done."""

from abc import abstractmethod
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from ._begins_anew import lengths_of_a_part, steps_before_the_batch
from .batch import Batch

__all__ = ["Paced"]


class Paced(Batch):
    """Base of callbacks that change each training batch by how much of the training is done.

    That is the share of the optimizer steps, a pure function of `trainer.global_step`, so all micro-batches of a window
    and all processes are changed alike, and a resumed run needs no state. Where the steps of a training cannot be told
    (manual optimisation, an endless loader, accumulation that changes), it is the share of the epochs. Where training
    begins anew within the fit (`_begins_anew.py`), so does the share. In a rehearsal (`fast_dev_run`) nothing is done.

    Args:
        others: Go to the next base class.

    Raises:
        ValueError: at set-up, if the Trainer has two of the class; before the first batch, if the training has no end
            that can be told.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._trainer: Trainer | None = None
        self._steps: int | None = None
        # Whether no batch was trained on yet.
        self._fresh = True

    @abstractmethod
    def change_at(self, batch: Any, done: float) -> Any:
        """The changed batch, a new container, or the same object if nothing is to do.

        Args:
            batch: On the device.
            done: Share of the training that is done, 0 for the first batch, below 1.
        """

    def advice(self) -> str:
        """A sentence to add to the error if the first batch that it changed cannot be trained on."""
        return ""

    def change(self, batch: Any, random: np.random.Generator) -> Any:
        return self.change_at(batch, self._done())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        kind = type(self).__name__
        if stage == "fit" and not self.off and self.rivals(trainer, type(self)):
            raise ValueError(
                f"{kind}: the Trainer has two of them, and each would change what the other made; keep one."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        # Not earlier: asking for the loader's length makes Lightning forget the loader's saved state.
        _, self._steps = lengths_of_a_part(trainer, pl_module)
        if self._steps is None and trainer.max_epochs in (None, -1):
            raise ValueError(
                f"{type(self).__name__}: the training has no end that can be told, so nobody knows how much of it is "
                "done; give the Trainer max_epochs or max_steps."
            )
        self._trainer, self._fresh = trainer, True
        self.undo_later(self._forget)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._trainer is not None and self._fresh and isinstance(exception, Exception) and (said := self.advice()):
            exception.add_note(f"{type(self).__name__}: {said}")
        super().on_exception(trainer, pl_module, exception)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(*args, **kwargs)
        self._fresh = False

    def _forget(self) -> None:
        self._trainer = None

    def _done(self) -> float:
        trainer = self._trainer
        assert trainer is not None
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return 0.0
        if self._steps is not None:
            return min(1.0, steps_before_the_batch(trainer) / self._steps)
        return trainer.current_epoch / int(trainer.max_epochs or 1)
