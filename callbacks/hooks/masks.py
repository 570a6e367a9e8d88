"""Keeping chosen weights at zero: masks by parameter name, held through gradients, optimizers and resumes.

Nothing is reparametrised, so files hold masked weights under the names of a plain run. Public hooks used:
`on_train_start`, `on_train_batch_start`, `on_before_optimizer_step`, `on_train_batch_end`, `state_dict`,
`load_state_dict`, and torch's `Optimizer.register_step_pre_hook` and `register_step_post_hook`. While fitting the
precision plugin's public `backward` is wrapped: nothing later comes before those who read gradients in
`on_after_backward`, and SAM's second gradient passes there too.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ._around import last_word
from .method import Method, Place

__all__ = ["Masks"]


class Masks(Method):
    """Holds weights at zero by masks that a method gives after optimizer steps it chooses.

    A masked weight is zeroed at once together with what optimizers have kept of it (momentum), gets a gradient of zero,
    and is zeroed again after each optimizer step, against weight decay and momentum of other parts. `kept_masks` has
    the masks, boolean, by parameter name; they are saved with the step of the last question and of the last answer,
    `given_at`. A run that begins at step 0 begins without masks.

    Args:
        name: Part of the state key.

    Raises:
        ValueError: a mask is of a name that is no parameter, or has another shape, or is not boolean.
    """

    place = Place.MASKS
    # Whether the question at a fit's start waits for its first batch; each later one comes with the batch just done.
    needs_batch: bool = False
    # Whether `observe` is called before each optimizer step.
    observes: bool = False

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self.kept_masks: dict[str, Tensor] = {}
        self.given_at = -1  # optimizer steps done when `masks` last gave some
        # For `masks`, while it is asked: the module, and the training batch at hand if there is one.
        self.module: LightningModule | None = None
        self.batch: Any = None
        self._asked = -1
        self._parameters: dict[str, Tensor] = {}
        self._holds = False
        self._scaled = False  # whether gradients may overflow, as those of a loss scaler do
        # Masked parameters, and their masks in the parameter's type, by which they are multiplied.
        self._masked: list[Tensor] = []
        self._factors: list[Tensor] = []

    @abstractmethod
    def due(self, step: int) -> bool:
        """Whether masks are asked for after `step` optimizer steps; all ranks ask it and must hear the same.

        Step 0 is before the first. `kept_masks` and `given_at` are the same on all ranks.
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

    def forget(self) -> None:
        """Called when a run begins at step 0: drop what was gathered in another one."""

    def given(self, trainer: Trainer) -> None:
        """Called on all ranks when new masks are in place."""

    def observe(self, weights: Mapping[str, Tensor]) -> None:
        """See weights and their gradients before an optimizer's step: unscaled, synchronised, not clipped.

        Args:
            weights: The optimizer's parameters by name, with their `grad`.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self.kept_masks, self.given_at, self._asked = {}, -1, -1
            self.forget()
        self._parameters = dict(pl_module.named_parameters())
        self._holds = False
        self.undo_later(self._release)
        self._install(trainer, self.kept_masks)
        if not self.needs_batch:
            self._ask_if_due(trainer, pl_module, None)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._ask_if_due(trainer, pl_module, batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self.observes:
            stepped = {id(it) for group in optimizer.param_groups for it in group["params"]}
            self.observe({name: it for name, it in self._parameters.items() if id(it) in stepped})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._ask_if_due(trainer, pl_module, batch)

    @torch.no_grad()
    def mask_gradients(self, *_: Any) -> None:
        """Zero the masked weights' gradients, after each backward pass."""
        pairs = [(it.grad, factor) for it, factor in zip(self._masked, self._factors, strict=True)]
        there = [(gradient, factor) for gradient, factor in pairs if gradient is not None]
        if self._scaled:
            # An overflow that nobody will use is none, and zero times infinity is not zero.
            for gradient, factor in there:
                gradient.masked_fill_(factor == 0, 0)
        elif there:
            torch._foreach_mul_([gradient for gradient, _ in there], [factor for _, factor in there])

    @torch.no_grad()
    def mask_weights(self, *_: Any) -> None:
        """Zero the masked weights, after each optimizer step."""
        torch._foreach_mul_(self._masked, self._factors)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "masks": {name: it.cpu() for name, it in self.kept_masks.items()},
            "step": self._asked,
            "given_at": self.given_at,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.kept_masks = dict(state_dict["masks"])
        self._asked, self.given_at = state_dict["step"], state_dict["given_at"]

    def _ask_if_due(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        step = trainer.global_step
        if step == self._asked:
            return
        self._asked = step
        if not self.due(step):
            return
        found = None
        if trainer.is_global_zero:
            self.module, self.batch = pl_module, batch
            weights = {name: parameter.detach() for name, parameter in self._parameters.items()}
            try:
                found = self.masks(step, weights)
            finally:
                self.module = self.batch = None
            # On the CPU, for that is where a broadcast of objects can be opened on every rank.
            found = found and {name: mask.cpu() for name, mask in found.items()}
        found = trainer.strategy.broadcast(found)
        if found:
            self._install(trainer, found)
            self.given_at = step
            self.given(trainer)

    @torch.no_grad()
    def _install(self, trainer: Trainer, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            self._check(name, mask)
        if masks and not self._holds:
            self._hold(trainer)
        for name, mask in masks.items():
            parameter = self._parameters[name]
            self.kept_masks[name] = mask.to(parameter.device)
            gone = ~self.kept_masks[name]
            parameter.masked_fill_(gone, 0)
            for optimizer in trainer.optimizers:
                # `get`, for asking a defaultdict would make a state.
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(gone, 0)
        self._masked = [self._parameters[name] for name in self.kept_masks]
        # In the parameter's type and layout, for a product of two types takes several times as long.
        self._factors = [torch.empty_like(self._parameters[name]).copy_(mask) for name, mask in self.kept_masks.items()]

    def _hold(self, trainer: Trainer) -> None:
        self._holds = True
        self._scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        self.undo_later(last_word(trainer.precision_plugin, "backward", self.mask_gradients).undo)
        for optimizer in trainer.optimizers:
            self.undo_later(optimizer.register_step_post_hook(self.mask_weights).remove)
            if not trainer.lightning_module.automatic_optimization:
                # Gradients of a `loss.backward()` that went past Lightning.
                self.undo_later(optimizer.register_step_pre_hook(self.mask_gradients).remove)

    def _release(self) -> None:
        self._parameters, self._masked, self._factors, self._holds = {}, [], [], False

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
