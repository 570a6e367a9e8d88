"""The report of the best validation of a fit, written when the fit ends, and of a validation or test, at its end.

Public hooks used: those of `evaluation.py`, `on_train_start`, `on_fit_end`, `state_dict`.
"""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from ._run_folder import run_folder
from .evaluation import Stage
from .predictions import Predictions, Tally

__all__ = ["BestReport"]


class BestReport(Predictions):
    """Keeps the report of the best validation of a fit and writes it when the fit ends.

    That of a `validate` or `test` is written at its end. Files go into `report/` beside the run's
    checkpoints; nothing is written in a rehearsal (`fast_dev_run`). The best report travels in the
    callback's state.

    Args:
        monitor: Logged value by which validations of a fit are compared; None keeps the latest.
        mode: Whether a small (`min`) or a large (`max`) value is good.
        others: Go to the next base class, among them `every_n_epochs`, `image_key`, `target_key` and `name`.

    Raises:
        ValueError: from the constructor, for a mode that is none; at set-up, if the Trainer has two of the class; at
            the first validation's end, if nothing is logged under `monitor`.
    """

    def __init__(self, *, monitor: str | None, mode: Literal["min", "max"], **others: Any) -> None:
        super().__init__(**others)
        if mode not in ("min", "max"):
            raise ValueError(f"{type(self).__name__}: mode is {mode!r}; give 'min' or 'max'.")
        self.monitor, self.mode = monitor, mode
        # Of the best validation of the last fit: its `report`, `score`, `epoch` and `step`.
        self.best: dict[str, Any] | None = None
        self._evaluates = False

    def ready(self, trainer: Trainer) -> None:
        """Refuse before a fit's first step what would be refused after its first validation."""

    def reported(self, trainer: Trainer, report: dict[str, Any], stage: Stage) -> None:
        """A watched validation, also one that is not the best of its fit, or a test was reported, on all ranks."""

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
        # A checkpoint's state comes later.
        if stage == "fit" and trainer.global_step == 0:
            self.best = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self.off:
            self.ready(trainer)

    def tallied(self, trainer: Trainer, tally: Tally, stage: Stage) -> None:
        fits = trainer.state.fn == "fit"
        score = self._score(trainer) if fits else None
        report = None if trainer.sanity_checking else tally.report()
        if report is None:
            return
        self.reported(trainer, report, stage)
        if not fits:
            self._write(trainer, report, stage, "validation" if stage == "val" else "test")
        elif self.best is None or self._beats(score, self.best["score"]):
            self.best = {
                "report": report,
                "score": score,
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
            }

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
        if trainer.is_global_zero:
            folder = run_folder(trainer) / "report"
            folder.mkdir(parents=True, exist_ok=True)
            self.write(report, stage, heading, folder)
