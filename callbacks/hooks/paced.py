"""The paced seam: the batch seam for methods whose change of the batch depends on how much of the training is done."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from ._clock import Moment
from .batch import Batch
from .method import Place
from .values import Values

__all__ = ["Moment", "Paced"]


class Paced(Values, Batch):
    """Base of callbacks that change each training batch by how much of the training is done.

    That is the share of the optimizer steps, a pure function of `trainer.global_step`, so all micro-batches of a window
    and all processes are changed alike, and a resumed run needs no state. Where the steps of a training cannot be told
    (manual optimisation, an endless loader, accumulation that changes), it is the share of the epochs. Where training
    begins anew within the fit (`_begins_anew.py`), so does the share. In a rehearsal (`fast_dev_run`) nothing is done.
    A method may move numbers along (`values.py`), which are set before the batch is augmented on the device.

    Args:
        others: Go to the next base class.

    Raises:
        ValueError: at set-up, if the Trainer has two of the class; before the first batch, if the training has no end
            that can be told.
    """

    place = Place.BATCH

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
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

    def names(self, pl_module: LightningModule) -> Sequence[str]:
        return ()

    def value(self, name: str, own: float, moment: Moment) -> float:
        return own

    def change(self, batch: Any, random: np.random.Generator) -> Any:
        assert self._clock is not None
        return self.change_at(batch, self._clock.now().done or 0.0)

    def begins(self, moment: Moment) -> str | None:
        if moment.done is None:
            raise ValueError(
                f"{type(self).__name__}: the training has no end that can be told, so nobody knows how much of it is "
                "done; give the Trainer max_epochs or max_steps."
            )
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        kind = type(self).__name__
        if stage == "fit" and not self.off and self.rivals(trainer, type(self)):
            raise ValueError(
                f"{kind}: the Trainer has two of them, and each would change what the other made; keep one."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._fresh = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        kind = type(self).__name__
        refused = not isinstance(exception, Exception) or str(exception).startswith(f"{kind}:")
        if self._clock is not None and self._fresh and not refused and (said := self.advice()):
            exception.add_note(f"{kind}: {said}")
        super().on_exception(trainer, pl_module, exception)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(*args, **kwargs)
        self._fresh = False
