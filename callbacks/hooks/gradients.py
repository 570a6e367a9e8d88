"""The gradients seam: what the first optimizer steps of a fit were taken with, read right after each of them.

By then a step's gradients are those of all its micro-batches and processes, without a scaler's factor, and still there:
Lightning clears them before the next backward pass. torch's hooks of optimizers are used, so steps of manual
optimisation count for the optimizer that takes them, also those that go past Lightning. They are taken off when enough
was seen. Public hooks used: `on_train_start`, `on_train_batch_end`, `on_train_end`, `on_exception`.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ._checks import whole
from ._findings import Action, known_action, tell
from .method import Method, Place

__all__ = ["Gradients"]


class Gradients(Method):
    """Judges a module by the gradients of its first optimizer steps, once a fit; it changes nothing.

    Args:
        steps: How many steps of each optimizer are read, >= 1. Fewer, where the fit ends before.
        action: `error` raises what is found, `warn` says it, `off` does not look.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: from the constructor, for a setting out of its range.
        RuntimeError: with `action="error"`, when training starts or after the last step that was read, for what was
            found.
    """

    place: ClassVar[Place] = Place.OBSERVE
    neutral = ({"action": "off"},)

    def __init__(self, *, steps: int, action: Action, **others: Any) -> None:
        super().__init__(**others)
        whole(type(self).__name__, "steps", steps, 1)
        known_action(type(self).__name__, action)
        self.steps = steps
        self.action: Action = action
        self._taken: list[int] = []  # steps by optimizer
        self._hooks: list[RemovableHandle] = []

    @abstractmethod
    def begin(self, pl_module: LightningModule, optimizers: Sequence[Optimizer]) -> Sequence[str]:
        """What is wrong before the first step, a sentence each; what was read in an earlier fit is forgotten."""

    @abstractmethod
    def read(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped; its parameters still have the gradients."""

    @abstractmethod
    def conclude(self, taken: Sequence[int]) -> Sequence[str]:
        """What is wrong by what was read, a sentence each.

        Args:
            taken: Steps that were read of each optimizer.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self.undo_later(self._leave)
        self._taken = [0] * len(trainer.optimizers)
        tell(self, trainer, self.begin(pl_module, trainer.optimizers))
        self._hooks = [
            optimizer.register_step_post_hook(partial(self._stepped, number))
            for number, optimizer in enumerate(trainer.optimizers)
        ]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # Not in the step, where torch walks along its hooks.
        if self._hooks and min(self._taken) == self.steps:
            self._judge(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self._hooks:
            self._judge(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # DDP stops in the second step where parameters go unused, and does not say which.
        unsaid = self._hooks and any(self._taken) and isinstance(trainer.strategy, DDPStrategy)
        found = self.conclude(self._taken) if unsaid else ()
        super().on_exception(trainer, pl_module, exception)
        for sentence in found:
            rank_zero_warn(f"{type(self).__name__}: before the exception, {sentence}")

    def _stepped(self, number: int, optimizer: Optimizer, *_: Any) -> None:
        if self._taken[number] < self.steps:
            self.read(optimizer)
            self._taken[number] += 1

    def _judge(self, trainer: Trainer) -> None:
        found = self.conclude(self._taken)
        self._leave()
        tell(self, trainer, found)

    def _leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
