"""Copies of what a training step changes, to be put back: tensors of a module, and what optimizers keep."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

__all__ = ["Snapshot", "TensorCopies"]


class TensorCopies:
    """Copies of a module's parameters and buffers as they are now, but for parameters that optimizers train.

    Args:
        module: Its parameters stay the same objects; in the places of buffers it may put others meanwhile.
        trained_by: Optimizers, which train those of their parameters that require a gradient; none, and all are copied.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, trained_by: Sequence[Optimizer] = ()) -> None:
        held = [it for optimizer in trained_by for group in optimizer.param_groups for it in group["params"]]
        seen = {id(it) for it in held if it.requires_grad}
        self._places: list[tuple[nn.Module, str]] = []
        self._own: list[Tensor] = []
        for part in module.modules():
            # torch's own dictionaries, for asking by name takes several times as long, in every step.
            for name, it in (*part._parameters.items(), *part._buffers.items()):
                if it is not None and id(it) not in seen:
                    seen.add(id(it))
                    self._places.append((part, name))
                    self._own.append(it)
        # torch's foreach functions refuse an empty list.
        self._copies = list(torch._foreach_clone(self._own)) if self._own else []

    @torch.no_grad()
    def put_back(self) -> None:
        """Let the module have the same tensors with the same values again."""
        for (owner, name), own, copied in zip(self._places, self._own, self._copies, strict=True):
            # What is expanded can only be replaced, never written in place.
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
        optimizers: Which keep tensors by parameter, by themselves or in nested containers.
    """

    @torch.no_grad()
    def __init__(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._tensors = TensorCopies(module)
        self._optimizers = list(optimizers)
        self._states = [_copied(it.state) for it in optimizers]

    @torch.no_grad()
    def put_back(self) -> None:
        """Let all be as it was; the snapshot can be put back again."""
        self._tensors.put_back()
        for optimizer, state in zip(self._optimizers, self._states, strict=True):
            optimizer.state.clear()
            optimizer.state.update(_copied(state))


def _copied(state: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: tree_map_only(Tensor, Tensor.clone, kept) for key, kept in state.items()}
