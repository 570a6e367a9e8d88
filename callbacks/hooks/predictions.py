"""The predictions seam: what the module answers to every batch of a validation or a test, summed up in a report.

Public hooks used: those around a validation, a test and their batches, `on_fit_end`, `state_dict`. The answer is taken
from the module's `forward` while a step runs, after whatever else changes it (an ensemble, views of an image).
"""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal, Protocol

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from ._answer import LastAnswer
from ._checks import whole
from ._fields import Fields
from .method import Method, Place

__all__ = ["Pixels", "Predictions", "Stage", "Tally"]

Stage = Literal["val", "test"]
# Mean and standard deviation of each channel, of pixels in 0..1, with which images were normalised.
Pixels = tuple[list[float], list[float]]


class Tally(Protocol):
    """What one validation or test adds up to."""

    def add(self, image: Any, logits: Tensor, target: Tensor) -> None:
        """Count a batch: its images, logits `(B, K)`, and classes `(B,)` or labels `(B, K)`, on the device."""

    def report(self) -> dict[str, Any] | None:
        """The sum over all processes, which all call it: plain data and CPU tensors; None if no batch came."""


class Predictions(Method):
    """Tallies logits and labels of every batch of a validation or test; keeps the report of the best validation.

    A step's logits are the last `(B, K)` that `pl_module(...)` returned in it. Of several loaders the first is
    reported. The report of the best validation of a fit is written when the fit ends, that of a `validate` or `test`
    at its end, into `report/` in the first logger's folder, else in the Trainer's `default_root_dir`. Nothing is
    written in a rehearsal (`fast_dev_run`). The best report travels in the callback's state.

    Args:
        monitor: Logged value by which validations of a fit are compared; None keeps the latest.
        mode: Whether a small (`min`) or a large (`max`) value is good.
        every_n_epochs: While fitting, validations of every n-th epoch are tallied, from the first on; at 0 nothing is.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for a mode or count that is none; at set-up, if the Trainer has two of the
            class; in the first batch, sanity check included, if the step asked forward for no logits or the labels do
            not fit them; at the first validation's end, if nothing is logged under `monitor`.
    """

    place = Place.OBSERVE
    neutral = ({"every_n_epochs": 0},)

    def __init__(
        self,
        *,
        monitor: str | None,
        mode: Literal["min", "max"],
        every_n_epochs: int,
        image_key: str,
        target_key: str,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        if mode not in ("min", "max"):
            raise ValueError(f"{kind}: mode is {mode!r}; give 'min' or 'max'.")
        whole(kind, "every_n_epochs", every_n_epochs, 0)
        self.monitor, self.mode, self.every_n_epochs = monitor, mode, every_n_epochs
        self.image_key, self.target_key = image_key, target_key
        self.fields = Fields(kind, image_key, target_key)
        # Of the best validation of the last fit: its `report`, `score`, `epoch` and `step`.
        self.best: dict[str, Any] | None = None
        self._tally: Tally | None = None
        self._answer: LastAnswer | None = None
        self._evaluates = False

    @abstractmethod
    def tally(self, pl_module: LightningModule, names: list[str] | None, pixels: Pixels | None) -> Tally:
        """An empty tally.

        Args:
            pl_module: Whose answers it will be.
            names: Of the classes, if datamodule or module say so.
            pixels: How images were normalised, if the datamodule says so.
        """

    @abstractmethod
    def write(self, report: dict[str, Any], stage: Stage, heading: str, folder: Path) -> None:
        """Print a report and write its files into `folder`, which is made; called on one process."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not self.off and (rivals := self.rivals(trainer, type(self))):
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {rivals[0].state_key}, and both would write the same "
                "files; keep one of them."
            )
        self.undo_later(self._release)
        # A checkpoint's state comes later.
        if stage == "fit" and trainer.global_step == 0:
            self.best = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        fits = trainer.state.fn == "fit"
        if not self.off and (not fits or trainer.sanity_checking or trainer.current_epoch % self.every_n_epochs == 0):
            self._begin(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_start(trainer, pl_module)
        if not self.off:
            self._begin(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self._listen_to(pl_module)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self._listen_to(pl_module)

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
        if dataloader_idx == 0:
            self._add(pl_module, batch, "validation_step")

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
        if dataloader_idx == 0:
            self._add(pl_module, batch, "test_step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        tally = self._tally
        self._release()
        if tally is None:
            return
        fits = trainer.state.fn == "fit"
        score = self._score(trainer) if fits else None
        if trainer.sanity_checking:
            return
        report = tally.report()
        if report is None:
            return
        if not fits:
            self._write(trainer, report, "val", "validation")
        elif self.best is None or self._beats(score, self.best["score"]):
            self.best = {
                "report": report,
                "score": score,
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
            }

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_test_end(trainer, pl_module)
        tally = self._tally
        self._release()
        report = None if tally is None else tally.report()
        if report is not None:
            self._write(trainer, report, "test", "test")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        if self.off:
            return
        if self.best is None:
            rank_zero_warn(
                f"{type(self).__name__}: no validation was tallied in this fit, so there is no report of it."
            )
            return
        heading = f"validation of epoch {self.best['epoch']}, step {self.best['step']}"
        if self.best["score"] is not None:
            heading += f", the best by {self.monitor} = {self.best['score']:.4g}"
        self._write(trainer, self.best["report"], "val", heading)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({} if self.best is None else {"best": self.best})

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._evaluates = trainer.state.fn != "fit"
        if not self._evaluates:
            # A file from before the first validation brings no state, and what is known is of another run.
            self.best = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Lightning also restores callbacks when it validates or tests a file, which is no fit of its own.
        if not self._evaluates:
            self.best = state_dict.get("best")

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = getattr(trainer, "datamodule", None)
        names = getattr(data, "class_names", None) or getattr(pl_module, "class_names", None)
        mean, std = getattr(data, "mean", None), getattr(data, "std", None)
        pixels = (list(mean), list(std)) if mean is not None and std is not None else None
        self._tally = self.tally(pl_module, None if names is None else [str(it) for it in names], pixels)

    def _listen_to(self, pl_module: LightningModule) -> None:
        if self._tally is None:
            return
        if self._answer is None:
            # Not before the first batch: what changes the answer (several views, an ensemble) is in place by then.
            self._answer = LastAnswer(pl_module)
        self._answer.take()

    def _release(self) -> None:
        if self._answer is not None:
            self._answer.undo()
        self._tally = self._answer = None

    def _add(self, pl_module: LightningModule, batch: Any, step: str) -> None:
        if self._tally is None or self._answer is None:
            return
        kind, logits = type(self).__name__, self._answer.take()
        if logits is None:
            raise ValueError(
                f"{kind}: {step} of {type(pl_module).__name__} got no logits (B, K) from the module's forward, so "
                "there is nothing to report; take them from `self(images)` there, or leave the callback out."
            )
        image, target = self.fields.image(batch), self.fields.target(batch)
        shape = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        whole_number = isinstance(target, Tensor) and not target.is_floating_point() and not target.is_complex()
        if not (shape == tuple(logits.shape) or (whole_number and shape == (len(logits),))):
            raise ValueError(
                f"{kind}: the labels of a batch are {shape} for logits {tuple(logits.shape)}; give whole numbers (B,), "
                "or with several labels an image 0 and 1 (B, K), or say with target_key= where they stand."
            )
        self._tally.add(image, logits, target)

    def _score(self, trainer: Trainer) -> float | None:
        if self.monitor is None:
            return None
        value = trainer.callback_metrics.get(self.monitor)
        if value is None:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise ValueError(
                f"{type(self).__name__}: no validation logs monitor={self.monitor!r}, by which the best one would be "
                f"told; logged is {logged}; name one of these, or None for the latest validation."
            )
        # Ranks may have logged values of their own, and must agree on what they keep.
        return float(trainer.strategy.broadcast(float(value)))

    def _beats(self, score: float | None, best: float | None) -> bool:
        if score is None or best is None or math.isnan(best):
            return True
        return score < best if self.mode == "min" else score > best

    def _write(self, trainer: Trainer, report: dict[str, Any], stage: Stage, heading: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return
        # Asked on all ranks, for Lightning broadcasts it.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "report"
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            self.write(report, stage, heading, folder)
