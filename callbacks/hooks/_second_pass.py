"""Computing the micro-batches of an optimizer step a second time, at other weights."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from ._around import Around
from ._replay import Replay, Streams, rewind

__all__ = ["MicroBatch", "SecondPass", "unsynchronised"]


class MicroBatch(NamedTuple):
    """One call of `strategy.training_step`: its arguments and the random streams it began with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    streams: Streams


class SecondPass:
    """Gradients of a step at other weights than its own; made anew when parts of the module may have changed.

    `running` says whether one is being computed.

    Args:
        trainer: Whose steps; it is fitting.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.module, self.running = trainer.lightning_module, False
        self._trainer = trainer
        self._replay = Replay(trainer)

    def gradients_at(
        self, weights: list[Tensor], compute: Callable[[], None], perturbation: list[Tensor]
    ) -> list[Tensor]:
        """The gradients that `compute` gives `weights` at `weights + perturbation`, which is emptied.

        Weights, and gradients of all other parameters, are as before afterwards, also by an exception.
        """
        own = set(map(id, weights))
        others = [(it, it.grad) for it in self._replay.parameters if it.grad is not None and id(it) not in own]
        if getattr(self._trainer.precision_plugin, "scaler", None) is not None:
            # After an overflow nothing is perturbed: the replay overflows too, and the scaler skips the step.
            for part in perturbation:
                part.nan_to_num_(0.0, 0.0, 0.0)
        before = torch._foreach_clone(weights)
        self.running = True
        try:
            with self._replay.without_trace(), self._quiet_backward():
                torch._foreach_add_(weights, perturbation)
                perturbation.clear()
                for weight in weights:
                    weight.grad = None
                for other, _ in others:
                    other.grad = None
                with torch.enable_grad():
                    compute()
        finally:
            self.running = False
            torch._foreach_copy_(weights, before)
            for other, gradient in others:
                other.grad = gradient
        return [torch.zeros_like(it) if it.grad is None else it.grad for it in weights]

    def compute(self, window: Sequence[MicroBatch], optimizer: Optimizer) -> None:
        """Go forward and backward through an accumulation window, whose last micro-batch synchronises the processes."""
        trainer = self._trainer
        for index, micro_batch in enumerate(window, start=1):
            rewind(micro_batch.streams)
            with nullcontext() if index == len(window) else unsynchronised(trainer):
                output = trainer.strategy.training_step(*micro_batch.args, **micro_batch.kwargs)
                loss = output["loss"] if isinstance(output, Mapping) else output
                if loss is not None:
                    trainer.strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)

    @contextmanager
    def _quiet_backward(self) -> Iterator[None]:
        around = Around(self._trainer.strategy, "backward", partial(_backward, self._trainer))
        try:
            yield
        finally:
            around.undo()


def unsynchronised(trainer: Trainer) -> AbstractContextManager[None]:
    """Inside, the processes of DDP keep their gradients to themselves."""
    strategy = trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, DDPStrategy) else nullcontext()


def _backward(
    trainer: Trainer, proceed: Callable[..., Any], loss: Tensor, optimizer: Any, *args: Any, **kwargs: Any
) -> Tensor:
    """Go backward without the hooks, which were called in the first pass."""
    strategy, precision = trainer.strategy, trainer.precision_plugin
    strategy.pre_backward(loss)
    scaler = getattr(precision, "scaler", None)
    scaled = loss if scaler is None else scaler.scale(loss)
    precision.backward(scaled, trainer.lightning_module, optimizer, *args, **kwargs)
    strategy.post_backward(scaled)
    return scaled.detach()
