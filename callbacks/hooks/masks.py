"""Keeping chosen weights at zero: masks by parameter name, held through gradients, optimizers and resumes.

Nothing is reparametrised, so files hold masked weights under the names of a plain run. Public hooks used:
`on_train_start`, `on_train_batch_end`, `state_dict`, `load_state_dict`, and torch's `Tensor.register_hook` and
`Optimizer.register_step_post_hook`.
"""

from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from .method import Method, Place

__all__ = ["Masks"]


class Masks(Method):
    """Holds weights at zero by masks that a method gives after optimizer steps it chooses.

    A masked weight is zeroed at once together with what optimizers have kept of it (momentum), gets a gradient of zero,
    and is zeroed again after each optimizer step, against weight decay and momentum of other parts. `kept_masks` has
    the masks, boolean, by parameter name; they are saved with the step of the last question. A run that begins at step
    0 begins without masks.

    Args:
        name: Part of the state key.

    Raises:
        ValueError: a mask is of a name that is no parameter, or has another shape, or is not boolean.
    """

    place = Place.MASKS

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.kept_masks: dict[str, Tensor] = {}
        self._asked = -1
        self._parameters: dict[str, Tensor] = {}
        self._hooked = set[str]()

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether masks are asked for after `step` optimizer steps; a function of nothing else, for all ranks ask it.

        Step 0 is before the first.
        """

    @abstractmethod
    def masks(self, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        """Boolean masks, True where a weight is kept, or None to leave all as they are; rank 0 alone computes them.

        Args:
            step: Optimizer steps done.
            weights: The parameters by name, to be read only.

        Returns:
            By parameter name, masks of the parameter's shape, which replace earlier ones of that name. A weight whose
            mask turns True again goes on from zero.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self.kept_masks, self._asked = {}, -1
        self._parameters = dict(pl_module.named_parameters())
        self._hooked = set()
        self.undo_later(self._parameters.clear)
        self._install(trainer, self.kept_masks)
        self._ask_if_due(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._ask_if_due(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "masks": {name: it.cpu() for name, it in self.kept_masks.items()},
            "step": self._asked,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.kept_masks, self._asked = dict(state_dict["masks"]), state_dict["step"]

    def _ask_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        if step == self._asked:
            return
        self._asked = step
        if not self.due(step):
            return
        found = None
        if trainer.is_global_zero:
            weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
            found = self.masks(step, weights)
            # On the CPU, for that is where a broadcast of objects can be opened on every rank.
            found = found and {name: mask.cpu() for name, mask in found.items()}
        found = trainer.strategy.broadcast(found)
        if found:
            self._install(trainer, found)

    @torch.no_grad()
    def _install(self, trainer: Trainer, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._check(name, mask)
        if masks and not self._hooked:
            for optimizer in trainer.optimizers:
                self.undo_later(optimizer.register_step_post_hook(self._zero).remove)
        for name, mask in masks.items():
            parameter = self._parameters[name]
            self.kept_masks[name] = mask.to(parameter.device)
            parameter[~self.kept_masks[name]] = 0
            for optimizer in trainer.optimizers:
                # `get`, for asking a defaultdict would make a state.
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value[~self.kept_masks[name]] = 0
            if name not in self._hooked and parameter.requires_grad:
                self.undo_later(parameter.register_hook(partial(self._masked, name)).remove)
            self._hooked.add(name)

    def _masked(self, name: str, gradient: Tensor) -> Tensor:
        return torch.where(self.kept_masks[name], gradient, 0)

    @torch.no_grad()
    def _zero(self, *_: Any) -> None:
        for name, mask in self.kept_masks.items():
            self._parameters[name].mul_(mask)

    def _check(self, name: str, mask: Tensor) -> None:
        kind, parameter = type(self).__name__, self._parameters.get(name)
        if parameter is None:
            raise ValueError(
                f"{kind}: there is a mask of {name!r}, which is no parameter of the module; train the module that the "
                "masks were made for, or leave the callback out to drop them."
            )
        if mask.shape != parameter.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"{kind}: the mask of {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; give a boolean one of the "
                f"parameter's shape {tuple(parameter.shape)}."
            )
