"""The online seam: one teacher that trains along with the student, by the same optimizers.

It hangs on the module as a trained part of `taught.py` does, so files of the module and of its optimizers are those of
a plain run, and its values stand in the callback's state. Public hooks used: those of `taught.py`, the start of a
training batch, and start and end of validation batches and of a validation's epoch.
"""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from ._checks import whole
from ._moment import seed_of
from .taught import Answer, Taught

__all__ = ["Online"]


class Online(Taught):
    """Trains a copy of the teacher beside the student, in train mode, and compares the two.

    What the teacher draws, as its dropout does, comes from a stream that begins with `seed`.

    While fitting, validations log the student's expected calibration error as `val/student_ece`, followed by the state
    key where two callbacks do; it is torchmetrics' `MulticlassCalibrationError` over the first loader and all
    processes. A `validation_step` that does not call the network is warned of.

    Args:
        ece_bins: Bins of confidence of the calibration error; 0 leaves it out.
        others: Go to the next base class.

    Raises:
        ValueError: `teacher` is a list, or one of the settings is out of range.
    """

    def __init__(self, *, ece_bins: int, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        if isinstance(self.teacher, (list, tuple)):
            raise ValueError(f"{kind}: teacher is a list, and one teacher trains along; give one.")
        whole(kind, "ece_bins", ece_bins, 0)
        self.ece_bins = ece_bins
        self._ece: MulticlassCalibrationError | None = None  # during a fit
        self._renormalised: Callable[[Tensor], Tensor] | None = None
        self._draws = 0  # seed of what the teacher draws in this batch

    @abstractmethod
    def compare_both(self, student: Tensor, teacher: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """The terms of one batch, a scalar under each name of `weights`, from logits `(B, K)` and the labels."""

    def parts(
        self, student: Mapping[str, torch.Size], teachers: Sequence[Mapping[str, torch.Size]]
    ) -> Mapping[str, nn.Module]:
        if self.ece_bins:
            self._ece = MulticlassCalibrationError(student[""][1], n_bins=self.ece_bins, validate_args=False)
        # As it begins; from here on it is a trained part and answers no more as one that stands still.
        (network,) = self.teachers
        self._renormalised = self._heard.pop(id(network))[1]
        self.teachers, self._prints = [], []
        return {"teacher": copy.deepcopy(network).requires_grad_().train()}

    def compare(self, batch: Any, student: Answer, teachers: Sequence[Answer]) -> Mapping[str, Tensor]:
        images = self.fields.image(batch)
        with self._own_draws(images.device):
            teacher = self.trained["teacher"](images if self._renormalised is None else self._renormalised(images))
        return self.compare_both(student.logits, teacher, self.fields.target(batch))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.undo_later(self._forget)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self._ece is not None:
            self._ece.to(pl_module.device)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # Of the moment, not of what was drawn before: a resumed run and a replay of the batch draw alike.
        self._draws = seed_of(self.seed, trainer.global_rank, trainer.current_epoch, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if self._ece is not None and dataloader_idx == 0:
            self._outputs = {path: [] for path in self.outputs_of}

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
        if self._ece is None or self._outputs is None:
            return
        calls, self._outputs = self._outputs[self.outputs_of[0]], None
        # DDP calls the module around its step, which is heard as a call with what the step returned.
        answers = [it for it in calls if isinstance(it, Tensor) and it.ndim == 2]
        if answers:
            target = self.fields.target(batch)
            self._ece.update(answers[-1].float(), target if target.ndim == 1 else target.argmax(dim=1))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if self._ece is None:
            return
        batches = torch.tensor(float(self._ece.update_count), device=pl_module.device)
        if not trainer.strategy.reduce(batches, reduce_op="sum"):
            rank_zero_warn(
                f"{type(self).__name__}: validation_step of {type(pl_module).__name__} got no logits from the network, "
                "so there is no calibration error to log; set ece_bins=0 if that is meant."
            )
            return
        others = any(isinstance(it, Online) and it.ece_bins for it in self.rivals(trainer, Online))
        # Equal on all ranks already; Lightning warns of what it is not told to average.
        label = f"val/student_ece/{self.state_key}" if others else "val/student_ece"
        pl_module.log(label, self._ece.compute(), sync_dist=True)
        self._ece.reset()

    @contextmanager
    def _own_draws(self, device: torch.device) -> Iterator[None]:
        on_cpu = device.type == "cpu"
        with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
            # Not `torch.manual_seed`, which seeds all devices there are.
            torch.default_generator.manual_seed(self._draws)
            if not on_cpu:
                getattr(torch, device.type).manual_seed(self._draws)
            yield

    def _forget(self) -> None:
        self._ece = self._outputs = self._renormalised = None
