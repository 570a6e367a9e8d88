"""The predictions seam: what the module answers to every batch of a validation or a test, added up.

Public hooks used: those of `evaluation.py`. The answer is taken from the module's `forward` while a step runs, after
whatever else changes it (an ensemble, views of an image).
"""

from abc import abstractmethod
from typing import Any, Protocol

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from ._answer import LastAnswer
from ._fields import Fields
from ._metadata import Pixels, class_names, normalised_by
from .evaluation import Evaluation, Stage

__all__ = ["Predictions", "Tally"]


class Tally(Protocol):
    """What one validation or test adds up to."""

    def add(self, image: Any, logits: Tensor, target: Tensor) -> None:
        """Count a batch: its images, logits `(B, K)`, and classes `(B,)` or labels `(B, K)`, on the device."""

    def report(self) -> dict[str, Any] | None:
        """The sum over all processes, which all call it: plain data and CPU tensors; None if no batch came."""


class Predictions(Evaluation):
    """Tallies logits and labels of every batch of a watched validation or test.

    A step's logits are the last `(B, K)` that `pl_module(...)` returned in it. Of several loaders the first is tallied.

    Args:
        image_key: Key of the images, if batches are mappings; in other batches they come first. None where the tally
            needs no images, and is given None.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `every_n_epochs` and `name`.

    Raises:
        ValueError: in the first batch, sanity check included, if the step asked forward for no logits or the labels do
            not fit them.
    """

    def __init__(self, *, image_key: str | None, target_key: str, **others: Any) -> None:
        super().__init__(**others)
        self.image_key, self.target_key = image_key, target_key
        self.fields = Fields(type(self).__name__, image_key or "", target_key)
        self._tally: Tally | None = None
        self._answer: LastAnswer | None = None

    @abstractmethod
    def tally(self, pl_module: LightningModule, names: list[str] | None, pixels: Pixels | None) -> Tally:
        """An empty tally.

        Args:
            pl_module: Whose answers it will be.
            names: Of the classes, if datamodule or module say so.
            pixels: How images were normalised, if the datamodule says so.
        """

    @abstractmethod
    def tallied(self, trainer: Trainer, tally: Tally, stage: Stage) -> None:
        """All batches were added, and the module has logged what it logs; called on all ranks, in a sanity check, too.

        Args:
            trainer: Whose validation or test it was.
            tally: Its sum is asked for on all ranks or on none.
            stage: Which of the two.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._release)

    def starts(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        self._tally = self.tally(pl_module, class_names(trainer, pl_module), normalised_by(trainer))

    def batch_starts(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if self._answer is None:
            # Not before the first batch: what changes the answer (several views, an ensemble) is in place by then.
            self._answer = LastAnswer(pl_module)
        self._answer.take()

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if self._tally is None or self._answer is None:
            return
        kind, logits = type(self).__name__, self._answer.take()
        if logits is None:
            step = "validation_step" if stage == "val" else "test_step"
            raise ValueError(
                f"{kind}: {step} of {type(pl_module).__name__} got no logits (B, K) from the module's forward, so "
                "there is nothing to report; take them from `self(images)` there, or leave the callback out."
            )
        image = None if self.image_key is None else self.fields.image(batch)
        target = self.fields.target(batch)
        shape = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        whole_number = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
        if not (shape == tuple(logits.shape) or (whole_number and shape == (len(logits),))):
            raise ValueError(
                f"{kind}: the labels of a batch are {shape} for logits {tuple(logits.shape)}; give whole numbers (B,), "
                "or with several labels an image 0 and 1 (B, K), or say with target_key= where they stand."
            )
        self._tally.add(image, logits, target)

    def ends(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        tally = self._tally
        self._release()
        if tally is not None:
            self.tallied(trainer, tally, stage)

    def _release(self) -> None:
        if self._answer is not None:
            self._answer.undo()
        self._tally = self._answer = None
