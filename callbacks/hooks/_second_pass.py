"""Computing the micro-batches of an optimizer step a second time, at other weights."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from ._around import Around
from ._replay import Replay, Streams, rewind

__all__ = ["MicroBatch", "SecondPass", "unsynchronised"]


class MicroBatch:
    """One call of `strategy.training_step`, before it is made; what it takes out of its batch stays in here.

    Args:
        args: Its arguments, whose lists, tuples, mappings and dataclasses are copied, and whose tensors are not.
        kwargs: Likewise.
        streams: The random streams it begins with.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], streams: Streams) -> None:
        tensors: list[Tensor] = []
        self._args, self._kwargs, self.streams = _copy(args, tensors), _copy(kwargs, tensors), streams
        # A mixed label's tensor function would look at each version, too.
        with torch._C.DisableTorchFunctionSubclass():
            self._versions = [(it, it._version) for it in tensors if not it.is_inference()]

    @property
    def changed(self) -> bool:
        """Whether one of its tensors was written in place since."""
        with torch._C.DisableTorchFunctionSubclass():
            return any(it._version != version for it, version in self._versions)

    def call(self, function: Callable[..., Any]) -> Any:
        """Call `function` with the arguments, in containers that it may change."""
        return function(*_copy(self._args, []), **_copy(self._kwargs, []))


class SecondPass:
    """Gradients of a step at other weights than its own; made anew when parts of the module may have changed.

    `running` says whether one is being computed.

    Args:
        trainer: Whose steps; it is fitting.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.running = False
        self.names: dict[Tensor, str] = {it: name for name, it in trainer.lightning_module.named_parameters()}
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
                output = micro_batch.call(trainer.strategy.training_step)
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


def _copy(value: Any, tensors: list[Tensor]) -> Any:
    """A copy of nested containers around the same contents; the tensors among these are added to `tensors`."""
    if isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(value, tuple):
        parts = [_copy(it, tensors) for it in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, list | MutableMapping):
        copied: Any = copy.copy(value)
        for key in range(len(copied)) if isinstance(value, list) else list(copied):
            copied[key] = _copy(copied[key], tensors)
        return copied
    elif is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        record: Any = copy.copy(value)
        vars(record).update({name: _copy(it, tensors) for name, it in vars(value).items()})
        return record
    return value


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
