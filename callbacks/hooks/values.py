"""The values seam: numbers of the module, the optimizer, the datamodule or another callback that move with training.

Each is a pure function of where the training stands, set before a batch is transferred and augmented, so nothing is
counted here: after a resume, inside an accumulation window or when fp16's scaler has skipped an update, the numbers
follow from `trainer.global_step`, or where a callback shortens epochs from the steps of whole ones (`_lengths.py`).
When the fit is over, or broken off, what the numbers were before is put back.

Public hooks used: `setup`, `on_fit_start`, `on_train_start`, `on_train_batch_start`, `on_save_checkpoint`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from ._around import Around
from ._attributes import Attribute, find
from ._clock import Clock, Moment
from ._counted_steps import refuse_uncounted_steps
from .method import Method, Place, callbacks_of

__all__ = ["Moment", "Values"]


class _Held(NamedTuple):
    asked: str
    attribute: Attribute
    own: float


class Values(Method):
    """Sets numbers before each training batch; a method says their `names` and the `value` of each.

    Not before the first one: by a setting of 0 another callback would take itself for switched off for the whole fit.

    How names are read is told in `_attributes.py`. Files hold parameter groups and hyperparameters as they were before
    the fit. A buffer is filled where it lies and is in a file what it was at that step; of what it was before the fit
    the callback's own state tells a resumed run.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: before the first batch, if a name leads to no number that can be set, another callback sets the same
            or its owner refuses a value; at an optimizer step that goes past Lightning.
    """

    place = Place.SCHEDULE

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._held: list[_Held] = []
        self._saved: dict[str, float] = {}
        self._clock: Clock | None = None

    @abstractmethod
    def names(self, pl_module: LightningModule) -> Sequence[str]:
        """Dotted names of the numbers, in this fit; none leaves all as it is."""

    @abstractmethod
    def value(self, name: str, own: float, moment: Moment) -> float:
        """The number at a moment.

        Args:
            name: One of `names`.
            own: What it was before the fit.
            moment: Where the training stands.
        """

    def bounds(self, name: str, own: float) -> Sequence[float]:
        """Values to try before the first batch, so that an owner who refuses some does so then."""
        return ()

    def begins(self, moment: Moment) -> str | None:
        """Refuse what does not fit before the first batch, or return a warning."""
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._saved = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off or not (names := self.names(pl_module)):
            return
        kind = type(self).__name__
        # Here, before a checkpoint's optimizers are restored, parameter groups are as the module made them.
        found = [(name, it) for name in names for it in find(kind, name, trainer, pl_module)]
        others = [it for it in callbacks_of(trainer) if isinstance(it, Values) and it is not self]
        taken = {held.attribute.place: type(it).__name__ for it in others for held in it._held}
        for _, it in found:
            if it.place in taken:
                raise ValueError(f"{kind}: {kind} and {taken[it.place]} would both set {it.name}; keep one of them.")
            taken[it.place] = kind
        refuse_uncounted_steps(self, trainer)
        self.undo_later(self._put_back)
        for name, it in found:
            now = it.get()
            own = self._saved.get(it.name, now.item()) if isinstance(now, Tensor) else now
            self._held.append(_Held(name, it, own))
            self._try(it, self.bounds(name, own), own)

        def set_first(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if trainer.training and not trainer.sanity_checking:
                self._set(type(pl_module).__name__)
            return proceed(*args, **kwargs)

        self.undo_later(Around(trainer.strategy, "batch_to_device", set_first).undo)
        if any(it.name.startswith("hparams.") for _, it in found):
            # Files of weights alone, which have hyperparameters too, reach no hook of a callback.
            self.undo_later(Around(pl_module, "on_save_checkpoint", self._with_own_hparams(pl_module)).undo)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off:
            return
        self._clock = Clock(trainer, pl_module)
        self.undo_later(self._stop)
        warning = self.begins(self._clock.now())
        if warning is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # declared nowhere
            rank_zero_warn(warning)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # Once more, for a module that fetches its batches itself.
        self._set(type(pl_module).__name__)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for _, it, own in self._held:
            for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
                if it.group is not None and optimizer is it.owner:
                    state["param_groups"][it.group][it.key] = own

    def state_dict(self) -> dict[str, Any]:
        own = {it.attribute.name: it.own for it in self._held if isinstance(it.attribute.get(), Tensor)}
        return super().state_dict() | ({"own": own} if own else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._saved = state_dict.get("own", {})

    def _try(self, attribute: Attribute, values: Sequence[float], own: float) -> None:
        for value in values:
            try:
                attribute.set(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{type(self).__name__}: {attribute.name} does not take {value}: {error}") from error
            finally:
                attribute.put_back(own)

    def _set(self, module: str) -> None:
        if not self._held or self._clock is None:
            return
        moment = self._clock.now()
        for asked, attribute, own in self._held:
            self._check_groups(attribute, module)
            value = self.value(asked, own, moment)
            whole = isinstance(own, int) and float(value).is_integer()
            attribute.set(int(value) if whole else value)

    def _with_own_hparams(self, pl_module: LightningModule) -> Callable[..., Any]:
        def save(proceed: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
            copies: dict[int, Any] = {}
            kept = deepcopy(checkpoint[pl_module.CHECKPOINT_HYPER_PARAMS_KEY], copies)
            for _, it, own in self._held:
                if it.name.startswith("hparams."):
                    holder = kept if it.owner is pl_module.hparams else copies[id(it.owner)]
                    replace(it, owner=holder).put_back(own)
            checkpoint[pl_module.CHECKPOINT_HYPER_PARAMS_KEY] = kept
            proceed(checkpoint)

        return save

    def _check_groups(self, attribute: Attribute, module: str) -> None:
        if attribute.group is None or len(attribute.owner.param_groups) == attribute.groups:
            return
        optimizer: Optimizer = attribute.owner
        raise ValueError(
            f"{type(self).__name__}: {type(optimizer).__name__} of {module} had {attribute.groups} parameter groups "
            f"when training was set up and has {len(optimizer.param_groups)} now, whose own {attribute.key} is not "
            "known; return all groups from configure_optimizers."
        )

    def _put_back(self) -> None:
        for _, attribute, own in self._held:
            if attribute.group is None or attribute.group < len(attribute.owner.param_groups):
                attribute.put_back(own)
        self._held = []

    def _stop(self) -> None:
        self._clock = None
