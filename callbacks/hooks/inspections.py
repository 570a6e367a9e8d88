"""The inspections seam: a module is looked at when training starts, after optimizer steps and at the end of epochs.

Public hooks used: `on_train_start`, `on_train_batch_end`, `on_train_epoch_end`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from ._checks import whole
from ._findings import Action, known_action
from .method import Method, Place

__all__ = ["Inspections"]


class Inspections(Method):
    """Looks at a module that trains and changes nothing; of what it finds all processes hear.

    It looks when training starts, after the first optimizer step, after every n-th one and at the end of each epoch,
    when evaluations are over and the training's own weights stand in the module.

    Args:
        every_n_steps: Optimizer steps from one look to the next, >= 1.
        action: `error` raises what was found, `warn` says it, once each, `off` does not look.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: with `action="error"`, when training starts or after a step, what was found then.
    """

    place = Place.OBSERVE
    neutral = ({"action": "off"},)

    def __init__(self, *, every_n_steps: int, action: Action, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "every_n_steps", every_n_steps, 1)
        known_action(kind, action)
        self.every_n_steps = every_n_steps
        self.action: Action = action
        self._began = self._looked = 0  # optimizer steps
        self._said: set[str] = set()

    @abstractmethod
    def begin(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[str]:
        """What is wrong before the first step, each a clause without a full stop; maybe nothing."""

    @abstractmethod
    def inspect(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> list[str]:
        """What is wrong by now, each a clause without a full stop; maybe nothing."""

    def end(self) -> None:
        """Forget the module; called after the fit, also by an exception."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self._began = self._looked = trainer.global_step
        self._said = set()
        self.undo_later(self.end)
        self._tell(trainer, self.begin(pl_module, trainer.optimizers), "before the first step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        step, every = trainer.global_step, self.every_n_steps
        if self.off or step == self._looked:
            return
        if self._looked == self._began or step // every > self._looked // every:
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not self.off and trainer.global_step != self._looked:
            self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._looked = trainer.global_step
        self._tell(trainer, self.inspect(pl_module, trainer.optimizers), f"after step {self._looked}")

    def _tell(self, trainer: Trainer, found: list[str], when: str) -> None:
        # One process that raises alone would leave the others waiting for it.
        if not trainer.strategy.reduce_boolean_decision(bool(found), all=False):
            return
        kind = type(self).__name__
        sentence = f"{kind}: {when}, {'; '.join(found) or 'another process found something, which it says'}."
        if self.action == "error":
            raise RuntimeError(sentence)
        for it in found:
            if it not in self._said:
                rank_zero_warn(f"{kind}: {when}, {it}.")
        self._said.update(found)
