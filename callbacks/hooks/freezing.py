"""The freezing seam: which parameters train in an epoch is a function of the epoch, and of nothing else.

A frozen parameter has no gradient, so the optimizer, which holds it from the start, passes it over: no step, no weight
decay, no momentum. The parts of the module that hold no trained parameter rest in evaluation mode, so batch norm's
statistics stand still and dropout is off. Nothing is saved: after a resume, within an epoch or at its end, what is
frozen follows from where the Trainer stands.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from ._around import Around
from ._frozen import Frozen
from ._wrapped_anew import wrap_anew
from .method import Method, Place

__all__ = ["Freezing"]


class Freezing(Method):
    """Freezes what does not train in an epoch; a method says `trained` and checks its `plan`.

    It acts when training starts and at the start of each epoch, where no accumulation window is open. Parameters that
    are frozen already, and parts in evaluation mode, are the module's own affair and stay so. Under DDP the module is
    wrapped anew when the set changes, for DDP synchronises the gradients that were wanted when it was made.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the Trainer has two that freeze, be it Lightning's `BaseFinetuning`; before the first
            batch, if `plan` refuses.
    """

    place = Place.SCHEDULE
    rests = "frozen parts are in evaluation mode, so their batch norms see no batch and their dropouts draw nothing"

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        self._trained: tuple[str, ...] | None = None
        self._frozen: Frozen | None = None

    @abstractmethod
    def plan(self, pl_module: LightningModule, epochs: int | None) -> str | None:
        """Refuse a module that does not fit before it trains, or return a warning.

        Args:
            pl_module: As `configure_optimizers` left it, nothing frozen by this callback.
            epochs: After so many epochs the training ends; None if that is not known.
        """

    @abstractmethod
    def trained(self, epoch: int) -> tuple[str, ...] | None:
        """Names of the parts that train in this epoch, as `network.head`; None if all do."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        for other in (it for kind in (Freezing, BaseFinetuning) for it in self.rivals(trainer, kind)):
            raise ValueError(
                f"{type(self).__name__}: the Trainer also has {other.state_key}, and each would thaw what the other "
                "freezes; keep one of them."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning declares it nowhere
        warning = self.plan(pl_module, None if rehearsal or trainer.max_epochs == -1 else trainer.max_epochs)
        if warning is not None:
            rank_zero_warn(warning)
        self.undo_later(self._thaw)
        self.undo_later(Around(trainer.precision_plugin, "optimizer_step", _step).undo)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # A run that is resumed within an epoch hears of no epoch's start.
        self._freeze(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        self._freeze(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self._frozen is not None:
            # The module, or whoever evaluated it meanwhile, may have called `train()`.
            self._frozen.rest()

    def _freeze(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trained = None if self.off else self.trained(trainer.current_epoch)
        if trained == self._trained:
            return
        self._thaw()
        self._trained = trained
        if trained is not None:
            self._frozen = Frozen(pl_module, trained)
        wrap_anew(trainer.strategy)

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
