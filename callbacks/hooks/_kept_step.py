"""An optimizer step that is kept while it is computed, so that it can be put back and computed again."""

import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.optim import Optimizer

from ._around import Around
from ._attributes_kept import attributes_kept
from ._replay import Replay, read_streams, rewind
from ._second_pass import MicroBatch, SecondPass
from ._snapshot import TensorCopies

__all__ = ["KeptStep"]


class KeptStep:
    """The micro-batches of a step with the random streams that each began with, and what they may write by themselves.

    That is buffers, and parameters that no optimizer trains, such as those of a teacher that follows.

    Args:
        trainer: It is fitting, and about to compute the first of them.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.before = TensorCopies(trainer.lightning_module, trainer.optimizers)
        self.batches: list[Any] = []  # as `training_step` was given them
        self._trainer = trainer
        self._window: list[MicroBatch] = []
        self._second_pass: SecondPass | None = None
        self._by_hand = False

    def add(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep a micro-batch, the arguments of `strategy.training_step`, before it is computed."""
        self._window.append(MicroBatch(args, kwargs, read_streams(self._trainer.strategy.root_device)))
        self.batches.append(args[0] if args else next(iter(kwargs.values()), None))

    @property
    def running(self) -> bool:
        """Whether it is being computed again."""
        return self._by_hand or (self._second_pass is not None and self._second_pass.running)

    def compute(self, optimizer: Optimizer) -> None:
        """Compute it again, without a trace but in gradients, and in eager mode, so that hooks of parts fire.

        By automatic optimisation forward and backward; by manual optimisation one `training_step`, in which nothing
        goes backward and no optimizer steps.

        Raises:
            ValueError: `training_step` wrote into its batch.
        """
        if any(it.changed for it in self._window):
            raise ValueError("training_step wrote into its batch")
        module = self._trainer.lightning_module
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        before = TensorCopies(module)
        try:
            with attributes_kept(module), eager:
                if module.automatic_optimization:
                    self._forward_and_backward(optimizer)
                else:
                    self._forward()
        finally:
            before.put_back()

    @torch.no_grad()
    def _forward_and_backward(self, optimizer: Optimizer) -> None:
        second = self._second_pass = SecondPass(self._trainer)
        weights = [it for group in optimizer.param_groups for it in group["params"] if it.requires_grad]
        compute = partial(second.compute, self._window, optimizer)
        second.gradients_at(weights, compute, [torch.zeros_like(it) for it in weights])

    def _forward(self) -> None:
        strategy = self._trainer.strategy
        replay = Replay(self._trainer)
        gradients = [(it, it.requires_grad, it.grad) for it in replay.parameters]
        around = [Around(strategy, name, _stand_still) for name in ("backward", "optimizer_step")]
        self._by_hand = True
        try:
            with replay.without_trace(), torch.enable_grad():
                for micro_batch in self._window:
                    rewind(micro_batch.streams)
                    micro_batch.call(strategy.training_step)
        finally:
            self._by_hand = False
            for it in around:
                it.undo()
            for parameter, needs, gradient in gradients:
                parameter.requires_grad_(needs)
                parameter.grad = gradient


def _stand_still(*_: Any, **__: Any) -> None:
    """Take the place of a backward pass and of an optimizer's step."""
