"""What is added to a layer for a fit, and how it hangs there."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ._added import Added

__all__ = ["Addition", "Hung"]


class Addition(nn.Module, ABC):
    """Added to one layer: how the layer's output is computed with it, and what the layer's own weights are with it."""

    @abstractmethod
    def forward(self, layer: nn.Module, given: Tensor, output: Tensor) -> Tensor:
        """The layer's output with the addition.

        Args:
            layer: To which this was added.
            given: The layer's input.
            output: What the layer made of it alone.
        """

    @abstractmethod
    def folded(self, layer: nn.Module) -> dict[str, Tensor]:
        """The layer's own parameters that change, by name, such that the layer alone computes what `forward` does."""

    def begin(self, *moment: int) -> None:
        """A training batch begins, known by these numbers."""


class Hung:
    """An addition on its layer, armed; `fold` ends it.

    Args:
        path: The layer's name in the module, without wrappers of `torch.compile`.
        layer: Which layer.
        addition: What is added.
        owner: The callback's state key.
    """

    def __init__(self, path: str, layer: nn.Module, addition: Addition, owner: str) -> None:
        self.path, self.layer, self.addition, self.owner = path, layer, addition, owner
        self.added = Added({path: addition})
        self.added.hang_on(layer, owner)
        # Before other hooks of the layer: the addition belongs to what the layer itself computes.
        self._hook: RemovableHandle = layer.register_forward_hook(self._add, prepend=True, with_kwargs=True)

    def _add(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        result: Tensor = self.addition(layer, args[0] if args else kwargs["input"], output)
        return result

    @torch.no_grad()
    def folded(self) -> list[tuple[nn.Parameter, Tensor]]:
        """The layer's parameters that change, each with what it is when the addition is folded in."""
        return [(self.layer.get_parameter(name), it) for name, it in self.addition.folded(self.layer).items()]

    @torch.no_grad()
    def unfolded(self) -> dict[str, Tensor]:
        """Copies on the CPU of the same parameters as they train, by name."""
        names = self.addition.folded(self.layer)
        return {name: self.layer.get_parameter(name).detach().to("cpu", copy=True) for name in names}

    def values(self) -> dict[str, Tensor]:
        """Copies on the CPU of what is added, by name."""
        tensors = [*self.addition.named_parameters(), *self.addition.named_buffers()]
        return {name: it.detach().to("cpu", copy=True) for name, it in tensors}

    @torch.no_grad()
    def write(self, values: dict[str, Tensor], unfolded: dict[str, Tensor]) -> None:
        """Take `values` and `unfolded` back, in place."""
        for name, it in [*self.addition.named_parameters(), *self.addition.named_buffers()]:
            it.copy_(values[name])
        for name, value in unfolded.items():
            self.layer.get_parameter(name).copy_(value)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold the addition into the layer's weights and take it off."""
        for parameter, value in self.folded():
            parameter.copy_(value)
        self._hook.remove()
        self.added.take_from(self.layer, self.owner)
