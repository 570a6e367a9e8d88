"""The distilling seam: terms of the loss that compare the network with what it was when training began.

The teacher is a copy of weights and buffers by name, in the callback's state alone: no module holds it, so neither
files nor optimizers nor DDP know of it, and a resumed run has the same one.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ._added import is_aside
from ._frozen import part_name
from ._lent import call_with
from .loss import Loss

__all__ = ["Distilling"]


class Distilling(Loss):
    """Adds terms that need the answers of the network as it was before the first optimizer step.

    The teacher answers in evaluation mode, without gradients and in the run's precision, to the images that
    `training_step` saw. Under masks that come at step 0 it is still dense.

    Args:
        network: Path of the part of the module that makes logits of images; empty is the module itself.
        others: Go to the next base class, among them `weights` and `name`.

    Raises:
        ValueError: at set-up, if there is no such part; before the first step, if a resumed checkpoint holds no
            teacher, or `ready` refuses.
    """

    def __init__(self, *, network: str, **others: Any) -> None:
        super().__init__(**others)
        self.network = network
        self.teacher: dict[str, Tensor] = {}
        self._trained: nn.Module | None = None
        self._parts: list[nn.Module] = []
        self._step = -1

    @abstractmethod
    def looked_at(self, network: nn.Module) -> Sequence[str]:
        """Paths of the network's layers whose outputs `term` needs, below the network's own."""

    @abstractmethod
    def ready(self, trainer: Trainer, pl_module: LightningModule) -> str | None:
        """Refuse what does not fit before the first batch, or return a warning."""

    def after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called on all ranks when a batch has ended in which `trainer.global_step` advanced, before masks change."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and not self.off:
            parts = {part_name(path): path for path, _ in pl_module.named_modules()}
            if self.network not in parts:
                raise ValueError(
                    f"{type(self).__name__}: {type(pl_module).__name__} has no part {self.network!r}; name with "
                    f"network= one of its `named_modules()`, such as {', '.join(repr(it) for it in list(parts)[1:6])}."
                )
            below = f"{self.network}." if self.network else ""
            inner = [parts[f"{below}{path}"] for path in self.looked_at(pl_module.get_submodule(parts[self.network]))]
            self.outputs_of = (parts[self.network], *inner)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self._trained = pl_module.get_submodule(self.outputs_of[0])
        self._parts = list(self._trained.modules())
        self.undo_later(self._release)
        named = [*self._trained.named_parameters(), *self._trained.named_buffers()]
        tensors = {name: it for name, it in named if not is_aside(name)}
        if trainer.global_step == 0:
            self.teacher = {name: it.detach().clone() for name, it in tensors.items()}
        if self.teacher.keys() != tensors.keys():
            raise ValueError(
                f"{type(self).__name__}: this run goes on from step {trainer.global_step}, and its checkpoint holds no "
                "teacher for this network; resume a run that had the callback, or begin a new one with these weights."
            )
        self.teacher = {name: it.to(tensors[name].device) for name, it in self.teacher.items()}
        self._step = trainer.global_step
        warning = self.ready(trainer, pl_module)
        if warning is not None:
            rank_zero_warn(warning)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.off and trainer.global_step != self._step:
            self._step = trainer.global_step
            self.after_step(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "teacher": {name: it.cpu() for name, it in self.teacher.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.teacher = dict(state_dict["teacher"])

    @torch.no_grad()
    def taught(self, images: Tensor) -> Any:
        """What the teacher answers to images `(B, C, H, W)`."""
        assert self._trained is not None
        flags = [part.training for part in self._parts]
        try:
            for part in self._parts:
                part.training = False
            return call_with(self._trained, self.teacher, (images,))
        finally:
            for part, training in zip(self._parts, flags, strict=True):
                part.training = training

    def _release(self) -> None:
        self._trained, self._parts = None, []
