"""The freezing seam: which parameters train is a function of the epoch, or of what a method has measured at a step.

A frozen parameter has no gradient, so the optimizer, which holds it from the start, passes it over: no step, no weight
decay, no momentum. A method whose class says so in `rests` lets the parts of the module that hold no trained parameter
rest in evaluation mode, so batch norm's statistics stand still and dropout is off. What is a function of the epoch
needs no state: after a resume, within an epoch or at its end, it follows from where the Trainer stands. What is
measured is the method's state, and changes only where an optimizer has just stepped, so that no accumulation window is
open.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from ._around import Around
from ._frozen import Frozen, StandingEntries
from ._plain_optimizers import held
from ._wrapped_anew import wrap_anew
from .method import Method, Place

__all__ = ["Freezing"]


class Freezing(Method):
    """Freezes what does not train; a method says `trained` and checks its `plan`.

    It acts when training starts, at the start of each epoch, and after a step for which the method is `due`, where no
    accumulation window is open. Parameters that are frozen already, and parts in evaluation mode, are the module's own
    affair and stay so. Under DDP the module is wrapped anew when the set changes, for DDP synchronises the gradients
    that were wanted when it was made.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the Trainer has two that freeze, be it Lightning's `BaseFinetuning`; before the first
            batch, if `plan` refuses, or if one set is to train for good and no optimizer has any of it.
    """

    place = Place.SCHEDULE
    # A method whose frozen parts keep their mode says "" here, as if nothing were frozen.
    rests = "frozen parts are in evaluation mode, so their batch norms see no batch and their dropouts draw nothing"
    # Whether one set trains for good: then it is frozen before optimizers are made, which may ask what trains.
    for_good: ClassVar[bool] = False

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._trained: tuple[str, ...] | None = None
        self._frozen: Frozen | None = None
        self._planned = self._unwrapped = False  # whether `plan` was asked; whether DDP does not know the set yet
        self._step = 0  # when last looked at

    @abstractmethod
    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        """Refuse a module that does not fit before it trains, or return a warning.

        Args:
            pl_module: With nothing frozen by this callback.
            epochs: After so many epochs the training ends; None if that is not known.
        """

    @abstractmethod
    def trained(self, epoch: int) -> tuple[str, ...] | None:
        """Names of the parts that train in this epoch, as `network.head`; None if all do."""

    def begin(self, pl_module: LightningModule) -> None:
        """A run begins at its step 0: forget an earlier one; what the method does to weights beforehand, it does here.

        `plan` was asked before; nothing has to be done by default.
        """

    def due(self, before: int, step: int) -> bool:
        """Whether `measured` is asked for after `step` optimizer steps; a function of nothing else, on all ranks.

        Args:
            before: Steps at the last question.
            step: Steps now.
        """
        return False

    def measured(self) -> Any:
        """Plain data of which `trained` is a function from now on; asked of rank 0 alone."""

    def settle(self, step: int, measured: Any) -> None:
        """Take in what rank 0 has measured after `step` optimizer steps; asked of all ranks."""

    def entries(self) -> Mapping[str, Tensor]:
        """Of parameters that train in part, by name: boolean masks, True for the entries that train."""
        return {}

    def surroundings(self) -> AbstractContextManager[Any] | None:
        """What each `training_step` runs within; None leaves it alone."""
        return None

    def numbers(self) -> Mapping[str, float]:
        """What is logged at the end of each epoch, as `train/NAME`."""
        return {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._planned = self._unwrapped = False
        if stage != "fit" or self.off:
            return
        for other in (it for kind in (Freezing, BaseFinetuning) for it in self.rivals(trainer, kind)):
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {other.state_key}, and each would thaw what the other "
                "freezes; keep one of them."
            )

        def freeze_first(proceed: Callable[..., Any]) -> Any:
            # Not in `setup`: the module may make its network in its own, or in `configure_model`.
            self._plan(trainer, pl_module)
            self._hold(trainer, pl_module)
            return proceed()

        if self.for_good:
            self.undo_later(Around(pl_module, "configure_optimizers", freeze_first).undo)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        self._plan(trainer, pl_module)
        self.undo_later(Around(trainer.precision_plugin, "optimizer_step", _step).undo)
        surroundings = self.surroundings()
        if surroundings is None:
            return

        def within(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with surroundings:
                return proceed(*args, **kwargs)

        own = pl_module.training_step
        self.undo_later(Around(pl_module, "training_step", within).undo)
        # Lightning reads there which arguments a wrapped `training_step` takes.
        vars(pl_module.training_step)["__wrapped__"] = getattr(own, "__wrapped__", own)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._step = trainer.global_step
        if self.off:
            return
        if self._step == 0:
            self.begin(pl_module)
        # A run that is resumed within an epoch hears of no epoch's start.
        self._freeze(trainer, pl_module)
        if self.for_good:
            self._refuse_untrained(trainer, pl_module)
        if masks := self.entries():
            standing = StandingEntries(pl_module, masks)
            self.undo_later(standing.undo)
            for optimizer in trainer.optimizers:
                self.undo_later(optimizer.register_step_post_hook(standing.restore).remove)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._freeze(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._frozen is not None:
            # The module, or whoever evaluated it meanwhile, may have called `train()`.
            self._frozen.rest()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        before, self._step = self._step, trainer.global_step
        if self.off or self._step == before or not self.due(before, self._step):
            return
        self.settle(self._step, trainer.strategy.broadcast(self.measured() if trainer.is_global_zero else None))
        self._freeze(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if not self.off:
            pl_module.log_dict({f"train/{name}": value for name, value in self.numbers().items()}, sync_dist=True)

    def _refuse_untrained(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wanted = [it for it in pl_module.parameters() if it.requires_grad]
        if not any(held(trainer.optimizers, it) for it in wanted):
            kind = type(pl_module).__name__
            raise ValueError(
                f"{type(self).__name__}: no optimizer of {kind} has any of the {len(wanted)} parameters that are to "
                "train; let configure_optimizers take `self.parameters()`, all or those that require a gradient."
            )

    def _plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._planned:
            return
        rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning declares it nowhere
        warning = self.plan(pl_module, None if rehearsal or trainer.max_epochs == -1 else trainer.max_epochs)
        if warning is not None:
            rank_zero_warn(warning)
        self._planned = True
        self.undo_later(self._thaw)

    def _freeze(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold(trainer, pl_module)
        if self._unwrapped:
            wrap_anew(trainer.strategy)
            self._unwrapped = False

    def _hold(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = None if self.off else self.trained(trainer.current_epoch)
        if trained == self._trained:
            return
        self._thaw()
        self._trained, self._unwrapped = trained, True
        if trained is not None:
            self._frozen = Frozen(pl_module, trained, rests=bool(self.rests))

    def _thaw(self) -> None:
        if self._frozen is not None:
            self._frozen.undo()
        self._trained = self._frozen = None


def _step(
    proceed: Callable[..., Any], optimizer: Optimizer, *, model: Any, closure: Callable[[], Any], **others: Any
) -> Any:
    """Step past a loss scaler where all that an optimizer holds is frozen: a scaler refuses to step without gradients.

    That is so under manual optimisation alone, where there are several optimizers.
    """
    if any(it.requires_grad for group in optimizer.param_groups for it in group["params"]):
        return proceed(optimizer, model=model, closure=closure, **others)
    return Precision.optimizer_step(model.trainer.precision_plugin, optimizer, model, closure, **others)
