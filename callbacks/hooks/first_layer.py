"""The first-layer seam: the gradient of one layer's weight is changed, knowing what the layer was given.

It is changed while backward computes it, once a micro-batch: before it is added to that of earlier micro-batches,
before DDP averages it over processes and before anybody reads it. Public hooks used: `on_train_start`,
`on_train_batch_start`, `on_train_batch_end`; torch's `Module.register_forward_pre_hook` and `Tensor.register_hook`.
"""

from abc import abstractmethod
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_vision.inspection.layers import find_layer

from .method import Method, Place

__all__ = ["FirstLayer"]


class FirstLayer(Method):
    """Changes the weight's gradient of one Linear or Conv2d layer, that which is given the batch.

    Args:
        layer: Its name in the module, as `network.conv1`; None takes the one that is called first in training.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: before the first step, if there is no such layer, `admit` refuses it, or its weight is frozen; at
            the first step, if none was called.
    """

    place = Place.NETWORK

    def __init__(self, *, layer: str | None, **others: Any) -> None:
        super().__init__(**others)
        if layer is not None and not (isinstance(layer, str) and layer):
            raise ValueError(f"{type(self).__name__}: layer is {layer!r}; give a layer's name, or None to find it.")
        self.layer = layer
        self._found: nn.Module | None = None
        self._given: list[Tensor] = []  # to the layer since the last gradient
        self._unseen = False  # whether nothing was given to it in training yet
        self._searching: list[Any] = []  # hooks on the layers that may be the first

    @abstractmethod
    def admit(self, layer: nn.Module) -> str | None:
        """Why this layer cannot be treated, as the end of a sentence that begins with its name; None if it can."""

    @abstractmethod
    def change(self, layer: nn.Module, gradient: Tensor, given: list[Tensor]) -> Tensor:
        """The gradient in the place of the weight's.

        Args:
            layer: The layer.
            gradient: Of the loss by its weight, of the weight's shape; scaled where a loss scaler is used.
            given: What the layer was given in this micro-batch, a tensor for each call.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self.undo_later(self._release)
        if self.layer is not None:
            self._take(self.layer, self._named(pl_module, self.layer), pl_module)
            return
        for name, layer in pl_module.named_modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                taken = partial(self._first, name, pl_module)
                self._searching.append(layer.register_forward_pre_hook(taken))
        if not self._searching:
            raise ValueError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no Linear or Conv2d layer when training "
                "starts; make them before, or leave the callback out."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # Of a forward that nobody went back through.
        self._given.clear()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._searching:
            raise ValueError(
                f"{type(self).__name__}: no Linear or Conv2d layer of {type(pl_module).__name__} was called in "
                "training_step; name the one that is given the images with layer=."
            )
        if self._unseen:
            self._unseen = False
            rank_zero_warn(
                f"{type(self).__name__}: {self.layer} was not called in the first training step, so nothing was "
                "changed in it; name the layer that is given the images, or None to find it."
            )

    def _named(self, pl_module: LightningModule, name: str) -> nn.Module:
        try:
            return find_layer(pl_module, name)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from error

    def _first(self, name: str, pl_module: LightningModule, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if not self._searching or not torch.is_grad_enabled():
            return
        self._stop_searching()
        self._take(name, layer, pl_module)
        self._keep(layer, given)

    def _take(self, name: str, layer: nn.Module, pl_module: LightningModule) -> None:
        problem = self.admit(layer)
        if problem is None and not layer.weight.requires_grad:
            problem = "has a frozen weight; thaw it, or leave the callback out"
        if problem is not None:
            raise ValueError(f"{type(self).__name__}: {name} of {type(pl_module).__name__} {problem}.")
        self._found, self._unseen = layer, True
        self.undo_later(layer.register_forward_pre_hook(self._keep).remove)
        weight: Any = layer.weight
        self.undo_later(weight.register_hook(partial(self._changed, layer)).remove)

    def _keep(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self._unseen = False
            self._given.append(given[0].detach())

    def _changed(self, layer: nn.Module, gradient: Tensor) -> Tensor:
        given = self._given[:]
        self._given.clear()
        if not given:
            raise ValueError(
                f"{type(self).__name__}: the layer was compiled before this fit, so what it is given cannot be seen; "
                "compile the network anew, or leave the callback out."
            )
        with torch.no_grad():
            return self.change(layer, gradient, given)

    def _stop_searching(self) -> None:
        for hook in self._searching:
            hook.remove()
        self._searching.clear()

    def _release(self) -> None:
        self._stop_searching()
        self._given.clear()
        self._found, self._unseen = None, False
