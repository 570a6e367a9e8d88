"""Copies of what a training step changes, to be put back: buffers, or weights, buffers and what optimizers keep."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["BufferCopies", "Snapshot"]


class BufferCopies:
    """Copies of a module's buffers as they are now.

    Args:
        module: It may put other tensors in their places meanwhile.
    """

    def __init__(self, module: nn.Module) -> None:
        paths = [name.rpartition(".") for name, _ in module.named_buffers()]
        self._places = [(module.get_submodule(path), name) for path, _, name in paths]
        self._own = [getattr(owner, name) for owner, name in self._places]
        # torch's foreach functions refuse an empty list.
        self._copies = list(torch._foreach_clone(self._own)) if self._own else []

    @torch.no_grad()
    def put_back(self) -> None:
        """Let the module have the same tensors with the same values again."""
        for (owner, name), own, copied in zip(self._places, self._own, self._copies, strict=True):
            # An expanded buffer can only be replaced, never written in place.
            if 0 not in own.stride():
                own.copy_(copied)
            if getattr(owner, name) is not own:
                setattr(owner, name, own)

    @torch.no_grad()
    def mend(self) -> None:
        """Put back those that hold numbers now that are not finite, and did not before."""
        for (owner, name), copied in zip(self._places, self._copies, strict=True):
            now = getattr(owner, name)
            if now.is_floating_point() and not now.isfinite().all() and copied.isfinite().all():
                now.copy_(copied)


class Snapshot:
    """Copies, where they lie, of weights, buffers and the state of optimizers as they are now.

    Learning rates and other settings of optimizers are not among them, for schedules go on.

    Args:
        module: Its parameters stay the same objects.
        optimizers: Which keep tensors by parameter.
    """

    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._weights: list[Tensor] = list(module.parameters())
        self._values = list(torch._foreach_clone(self._weights)) if self._weights else []
        self._buffers = BufferCopies(module)
        self._optimizers = list(optimizers)
        self._states = [_copied(it.state) for it in optimizers]

    @torch.no_grad()
    def put_back(self) -> None:
        """Let all be as it was; the snapshot can be put back again."""
        torch._foreach_copy_([it.data for it in self._weights], [it.detach() for it in self._values])
        self._buffers.put_back()
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(state))


def _copied(state: Mapping[Any, Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {
        parameter: {key: value.clone() if isinstance(value, Tensor) else value for key, value in kept.items()}
        for parameter, kept in state.items()
    }
