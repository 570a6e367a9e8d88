"""Listening to what layers of a module are given or put out while a step runs anyway."""

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.inspection.maps import as_maps, layout_of

__all__ = ["Listener"]


class Listener:
    """Features of a batch by torch's forward hooks, in `heard`; `undo` ends listening.

    Compiled code runs eagerly meanwhile, for hooks do not fire in it; nothing is compiled anew.

    Args:
        model: Whose layers they are.
        layers: Which are listened to. Of linear ones it is what they are given, else what they put out.
        name: Of the one layer whose output it is; None listens to inputs.
        size: Height and width of the images, pixels.
    """

    def __init__(self, model: nn.Module, layers: Iterable[nn.Module], name: str | None, size: tuple[int, int]) -> None:
        self.model, self.name, self.size = model, name, size
        # Layer, features `(B, D)` and the shape of what the layer put out, call by call.
        self.heard: list[tuple[nn.Module, Tensor, torch.Size]] = []
        self._stack = ExitStack()
        if "torch._dynamo" in sys.modules:
            self._stack.enter_context(torch.compiler.set_stance("force_eager"))
        for layer in layers:
            self._stack.callback(layer.register_forward_hook(self._hear).remove)

    def undo(self) -> None:
        """Take the hooks off; twice does nothing."""
        self._stack.close()

    def _hear(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        features = inputs[0] if self.name is None else output
        if not isinstance(output, Tensor) or not isinstance(features, Tensor):
            return
        if self.name is not None and features.ndim > 2:
            pooled = features.ndim == 4 and features.shape[2] == features.shape[3] == 1
            maps = features if pooled else as_maps(features, self.size, layout_of(self.model, layer), self.name)
            features = maps.mean((2, 3))
        if features.ndim == 2:
            # A copy, for what comes next may write in place.
            self.heard.append((layer, features.detach().clone(), output.shape))
