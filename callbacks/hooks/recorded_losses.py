"""The recorded-losses seam: the training-order seam for methods that choose by the loss each sample had last."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._classes import refuse_unlike_classes
from ._visits import Visit
from .training_order import TrainingOrder

__all__ = ["RecordedLosses", "sample_losses"]


def sample_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of each sample, float32 `(B,)`.

    Args:
        logits: `(B, K)`.
        targets: Classes, int64 `(B,)`, or shares of classes `(B, K)`.
    """
    return F.cross_entropy(logits.float(), targets if targets.ndim == 1 else targets.float(), reduction="none")


class RecordedLosses(TrainingOrder):
    """Keeps the cross entropy that each training sample had when it was last trained on.

    It is that of the logits which `training_step` computed anyway, of images as they were augmented and before the
    optimizer step; a replay of the batch changes nothing. Samples that never came have NaN. All ranks know all losses
    before an epoch is decided on and when a checkpoint is written.

    Args:
        others: Go to the next base class.

    Raises:
        ValueError: what the base class raises; in the first batch, if `network` makes no logits of two classes or more,
            or the batch's labels are no classes or shares of classes that sum to 1.
    """

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        # Float32 (samples,): the losses, in which batch of its epoch each sample came last, and which of them were
        # recorded on this rank since ranks last told each other.
        self.losses, self.batches = torch.empty(0), torch.empty(0)
        self._fresh = torch.empty(0, dtype=torch.bool)
        self._listening = self._read = False
        self._answers: list[Any] = []
        self._ranks, self._device = 1, torch.device("cpu")

    def known_losses(self, samples: int) -> Tensor:
        """The last loss of each of `samples`, float32 `(N,)` on the CPU, over all ranks, which all call this."""
        if len(self.losses) != samples:
            self.losses, self.batches = torch.full((2, samples), float("nan"))
            self._fresh = torch.zeros(samples, dtype=torch.bool)
        self._tell_each_other()
        return self.losses.cpu()

    def begin(self) -> None:
        super().begin()
        self.losses, self.batches, self._fresh = torch.empty(0), torch.empty(0), torch.empty(0, dtype=torch.bool)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        # In setup: hooks that come after a compiled module's first call are not seen.
        self.undo_later(self.part(pl_module).register_forward_hook(self._hear).remove)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ranks, self._device = trainer.world_size, trainer.strategy.root_device
        self._read = False
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._listening, self._answers = not self.off, []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.off or self.training_set is None:
            return
        self._listening = False
        # A training_step that skips the batch need not ask the network.
        if self._answers or outputs is not None:
            self._record(pl_module, self._answers, self.fields.target(batch), batch_idx)
        self._answers = []

    def state_dict(self) -> dict[str, Any]:
        self._tell_each_other()
        return super().state_dict() | {"losses": self.losses.cpu(), "batches": self.batches.cpu()}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.losses, self.batches = state["losses"].clone(), state["batches"].clone()
        self._fresh = torch.zeros(len(self.losses), dtype=torch.bool)

    def _plan(self, epoch: int, samples: int) -> Visit | None:
        before, visit = self._planned, super()._plan(epoch, samples)
        if before is not self._planned:
            # The epoch that begins says anew in which batch a sample comes.
            self.batches = torch.full_like(self.batches, float("nan"))
        return visit

    def _hear(self, network: nn.Module, args: Any, output: Any) -> None:
        # The first one: a replay comes later, and under DDP the module itself is called once more, around its step.
        if self._listening and not self._answers:
            self._answers.append(output.detach() if isinstance(output, Tensor) else output)

    def _record(self, pl_module: LightningModule, answers: Sequence[Any], targets: Any, index: int) -> None:
        kind = type(self).__name__
        part = self.network or type(pl_module).__name__
        if not answers:
            raise ValueError(
                f"{kind}: training_step did not call {part}, whose logits it needs; name with network= the part of "
                "the module that makes logits of images."
            )
        (logits,) = answers
        rows = len(self.here)
        # Labels are read once: reading them in each batch would wait for the device.
        refuse_unlike_classes(kind, part, logits, targets, rows, values=not self._read)
        self._read = True
        assert self.training_set is not None
        if self.losses.device != logits.device or len(self.losses) != self.training_set.samples:
            self.known_losses(self.training_set.samples)
            kept = self.losses, self.batches, self._fresh
            self.losses, self.batches, self._fresh = (it.to(logits.device) for it in kept)
        here = self.here.to(logits.device, non_blocking=True)
        self.losses[here] = sample_losses(logits[:rows], targets[:rows])
        self.batches[here] = float(index)
        self._fresh[here] = True

    def _tell_each_other(self) -> None:
        if self._ranks > 1 and len(self.losses):
            # On the device: nccl reduces nothing on the CPU.
            own = torch.stack([self.losses, torch.ones_like(self.losses)])
            told = own.where(self._fresh, torch.zeros_like(own)).to(self._device)
            batches = self.batches.where(self._fresh, torch.full_like(own[0], -1.0)).to(self._device)
            dist.all_reduce(told)
            dist.all_reduce(batches, dist.ReduceOp.MAX)
            told, batches = told.to(own.device), batches.to(own.device)
            # Of a sample that two ranks had, to even them out, the mean loss and the later batch.
            self.losses = self.losses.where(told[1] == 0, told[0] / told[1])
            self.batches = self.batches.where(told[1] == 0, batches)
        self._fresh = torch.zeros_like(self._fresh)
