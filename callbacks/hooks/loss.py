"""Adding terms to the loss that a module's `training_step` returns.

The module's own function is acted around, not the strategy's: terms are computed inside autocast and inside the forward
of a DDP wrapper, which therefore knows every parameter that they use.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from ._around import Around
from ._checks import number, takes_batches
from .method import Method, Place

__all__ = ["Loss"]


class Loss(Method):
    """Adds weighted terms to the loss of each training batch.

    `term` is called once each time `training_step` has run, also when the batch is replayed for a second gradient, with
    the batch that `training_step` saw. The sum goes through Lightning's own division by accumulated micro-batches,
    gradient scaling and clipping. A `training_step` that returns None, which skips the batch, stays so. Each term is
    logged unweighted as `train/TERM`, followed by the state key where two callbacks have a term of that name.

    Args:
        weights: By name of a term, what it is multiplied by; at 0 it is left out of the sum and still logged. If all
            are 0 and `own_weight` is 1, nothing is installed.
        own_weight: What the module's own loss is multiplied by; 1 leaves it alone.
        outputs_of: Paths of submodules whose outputs `term` needs.
        name: Part of the state key.

    Raises:
        ValueError: a weight is not finite, or `own_weight` negative; at set-up, if the module optimises manually, if
            its `training_step` takes a `dataloader_iter`, or if a path names no submodule; at the first step, if a
            path's submodule was not called, if `training_step` returned no loss, or if `term` returned other names or
            no scalars.
    """

    place = Place.LOSS

    def __init__(
        self, *, weights: Mapping[str, float], outputs_of: Sequence[str] = (), own_weight: float = 1.0, **others: Any
    ) -> None:
        super().__init__(**others)
        number(type(self).__name__, "own_weight", own_weight, 0)
        for key, weight in weights.items():
            if not math.isfinite(weight):
                raise ValueError(f"{type(self).__name__}: the weight of {key!r} is {weight}; give a finite number.")
        self.weights, self.outputs_of, self.own_weight = dict(weights), tuple(outputs_of), own_weight
        # None outside of `training_step`: what submodules put out then is not kept.
        self._outputs: dict[str, list[Any]] | None = None

    @property
    def silent(self) -> bool:
        """Whether all weights are 0, and 1 for the module's own loss, so that there is nothing to change."""
        return self.own_weight == 1 and not any(self.weights.values())

    @property
    def off(self) -> bool:
        """Whether nothing is changed; a method's setting need not be one of the weights."""
        return self.silent

    def resting(self, trainer: Trainer) -> bool:
        """Whether this batch is trained on as without the callback; then nothing is computed, kept or logged for it."""
        return False

    def ahead(self, pl_module: LightningModule, batch: Any) -> None:
        """Called before `training_step`, with the batch that it will see: for what needs memory of its own."""

    @abstractmethod
    def term(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        """The terms of one batch, a scalar under each name of `weights`.

        Args:
            pl_module: The module, in train mode.
            batch: What `training_step` saw.
            outputs: By path of `outputs_of`, what the submodule put out, an entry for each time it was called.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off or self.silent:
            return
        kind = type(self).__name__
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} optimises manually, so its training_step returns no loss to add a "
                "term to; use automatic optimization, or leave it out."
            )
        takes_batches(kind, pl_module)
        # In setup: hooks that come after a compiled module's first call are not seen.
        self.listen(pl_module, self.outputs_of)

    def listen(self, pl_module: LightningModule, outputs_of: Sequence[str]) -> None:
        """From the next step on `term` gets the outputs of these submodules; once in a fit."""
        paths = dict(pl_module.named_modules(remove_duplicate=False))
        for path in outputs_of:
            if path not in paths:
                raise ValueError(
                    f"{type(self).__name__}: {type(pl_module).__name__} has no submodule {path!r}; name one of its "
                    f"`named_modules()`, such as {', '.join(repr(it) for it in list(paths)[1:6])}."
                )
            self.undo_later(paths[path].register_forward_hook(self._keeper(path)).remove)
        self.outputs_of = tuple(outputs_of)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off or self.silent:
            return
        twice = {key for rival in cast(list[Loss], self.rivals(trainer, Loss)) for key in rival.weights}
        labels = {key: f"train/{key}/{self.state_key}" if key in twice else f"train/{key}" for key in self.weights}

        def step_and_add(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            # A validation_step may call it too.
            if not trainer.training or self.resting(trainer):
                return proceed(*args, **kwargs)
            outputs: dict[str, list[Any]] = {path: [] for path in self.outputs_of}
            self._outputs = outputs
            try:
                self.ahead(pl_module, args[0])
                result = proceed(*args, **kwargs)
            finally:
                self._outputs = None
            if result is None:
                return None
            values = self._values(pl_module, args[0], outputs)
            for key, value in values.items():
                pl_module.log(labels[key], value.detach())
            return self._add(result, values)

        own = pl_module.training_step
        self.undo_later(Around(pl_module, "training_step", step_and_add).undo)
        # Lightning reads there which arguments a wrapped `training_step` takes.
        vars(pl_module.training_step)["__wrapped__"] = getattr(own, "__wrapped__", own)

    def _keeper(self, path: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self._outputs is not None:
                self._outputs[path].append(output)

        return keep

    def _values(self, pl_module: LightningModule, batch: Any, outputs: Mapping[str, list[Any]]) -> Mapping[str, Tensor]:
        kind = type(self).__name__
        for path, calls in outputs.items():
            if not calls:
                raise ValueError(
                    f"{kind}: the submodule {path!r} was not called in training_step, so it has no output; name one "
                    "that is."
                )
        values = self.term(pl_module, batch, outputs)
        if values.keys() != self.weights.keys():
            raise ValueError(f"{kind}: its terms are {list(values)}, its weights are of {list(self.weights)}.")
        for key, value in values.items():
            if value.ndim:
                raise ValueError(f"{kind}: the term {key!r} has the shape {tuple(value.shape)}; return a scalar.")
        return values

    def _add(self, result: Any, values: Mapping[str, Tensor]) -> Any:
        """The step's result, a tensor or a mapping with `loss`, with the terms added in the order of `weights`."""
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            raise ValueError(
                f"{type(self).__name__}: training_step returned {type(result).__name__} without a loss; return a "
                "tensor, or a dict with a tensor under 'loss'."
            )
        if self.own_weight != 1:
            loss = loss * self.own_weight
        for key, weight in self.weights.items():
            if weight:
                loss = loss + weight * values[key]
        return {**result, "loss": loss} if isinstance(result, Mapping) else loss
