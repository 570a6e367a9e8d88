"""The forerun seam: steps at chosen learning rates before the first one of a fit, of which only a report is left.

Public hooks used: `setup`, `on_fit_start`, `on_train_start`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray

from ._checks import takes_batches
from ._group_settings import own_rates, set_rate
from ._media import keep_picture
from ._optimizer_copies import asks_for_closure
from ._run_folder import run_folder
from ._table import write_table
from ._trial_steps import trial_steps
from .method import Method, Place, callbacks_of
from .schedule import Schedule

__all__ = ["Conclusion", "Forerun"]


@dataclass(frozen=True)
class Conclusion:
    """What was found.

    Args:
        lr: The rate for the group whose own rate is highest; None if there is none to propose.
        text: One line of it.
        rows: Of the table.
    """

    lr: float | None
    text: str
    rows: Sequence[Mapping[str, float]]


class Forerun(Method):
    """Trains for a while at the rates of `rates()`, puts everything back, and tells.

    It acts when a fit begins with its first step; a fit that goes on from a checkpoint, or a rehearsal
    (`fast_dev_run`), has none. The table is `report/NAME.csv` in the run's folder, the picture
    `media/train/NAME/step_00000000.png` and for all loggers that take pictures; NAME is the callback's name or its
    `title`.

    Args:
        then: What follows: `report` only, `use` the proposed rate in this fit, or `stop` the fit.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: `then` is none of them; at set-up, if the Trainer has two, `overfit_batches`, or with `stop` a least
            number of epochs or steps, the module optimises manually or its `training_step` fetches its batches itself;
            before the first batch, if the rate is to be used and a schedule of the module's own sets it, there is no
            optimizer or its step needs a closure, training loader or optimizer cannot be copied, or the first step
            fails, for the module's `on_train_start` comes later.
    """

    place = Place.OBSERVE
    # What others put on layers when training starts is not there yet.
    leads = True
    title = "forerun"

    def __init__(self, *, then: Literal["report", "use", "stop"], **others: Any) -> None:
        super().__init__(**others)
        if then not in ("report", "use", "stop"):
            raise ValueError(f"{type(self).__name__}: then is {then!r}; give 'report', 'use' or 'stop'.")
        self.then = then
        self.found: Conclusion | None = None  # of the last fit that began here
        self._used: float | None = None

    @abstractmethod
    def rates(self) -> Sequence[float]:
        """The learning rate of each step, for the group whose own rate is highest."""

    @abstractmethod
    def ends(self) -> Callable[[float], bool]:
        """A function that is given each loss of a test and says whether to leave out the rates that follow."""

    @abstractmethod
    def conclude(self, rates: Sequence[float], losses: Sequence[float]) -> Conclusion:
        """What the rates that were tried and the losses before each of their steps say; the same on all ranks."""

    @abstractmethod
    def draw(self, found: Conclusion) -> NDArray[np.uint8]:
        """The picture, `(H, W, 3)`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        kind = type(self).__name__
        if trainer.global_step == 0:
            self._used = None
        if self.rivals(trainer, Forerun):
            raise ValueError(f"{kind}: the Trainer has several, and one is enough before a fit; keep one of them.")
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{kind}: {type(pl_module).__name__} optimises manually, so its training_step takes steps itself and "
                "cannot be tried at other rates; use automatic optimization, or leave it out."
            )
        takes_batches(kind, pl_module)
        overfit: int | float = trainer.overfit_batches  # type: ignore[attr-defined]  # Lightning declares it nowhere
        if overfit:
            raise ValueError(
                f"{kind}: overfit_batches={overfit} trains on a few batches alone, and the test would read others; "
                "leave one of them out."
            )
        if self.then == "stop" and (trainer.min_epochs or trainer.min_steps):
            raise ValueError(
                f"{kind}: then='stop' ends the fit before its first step, and min_epochs={trainer.min_epochs} or "
                f"min_steps={trainer.min_steps} would go on; leave them out, or pass then='report'."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not self.off and (closures := [type(it).__name__ for it in trainer.optimizers if asks_for_closure(it)]):
            raise ValueError(
                f"{type(self).__name__}: {closures[0]} computes the loss several times in each step, so there is no "
                "loss before a step at a rate to follow; leave the test out, or use an optimizer whose step takes no "
                "closure."
            )
        if not self.off and not any(it.param_groups for it in trainer.optimizers):
            raise ValueError(
                f"{type(self).__name__}: {type(pl_module).__name__} has no optimizer, so there is no rate to try; "
                "return one from configure_optimizers, or leave the test out."
            )
        configs = trainer.lr_scheduler_configs
        if self.then == "use" and not self.off and configs and not _schedules(trainer):
            kinds = " and ".join(type(config.scheduler).__name__ for config in configs)
            raise ValueError(
                f"{type(self).__name__}: then='use' sets a rate, and {kinds} of {type(pl_module).__name__} would set "
                "another; add CyclicalLR, OneCycle or another schedule with replace=True, or pass then='report'."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.off or trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
            return
        if trainer.global_step:
            if self._used is not None and self.then == "use":
                # A file has the rates of groups; what schedules multiply is made anew.
                self._use(trainer, self._used, trainer.ckpt_path is None)
            return
        self._refuse_several_loaders(trainer)
        tried, losses, ends = list(self.rates()), list[float](), self.ends()
        with trial_steps(type(self).__name__, trainer, pl_module) as step:
            for rate in tried:
                losses.append(self._first(step, rate, pl_module) if not losses else step(rate))
                if ends(losses[-1]):
                    break
        self.found = self.conclude(tried[: len(losses)], losses)
        if trainer.is_global_zero:
            self._tell(trainer, self.found)
        if self.then == "stop":
            trainer.should_stop = True
        elif self.then == "use" and self.found.lr is None:
            rank_zero_warn(f"{type(self).__name__}: there is no rate to use, so the run's own stays.")
        elif self.then == "use" and self.found.lr is not None:
            self._use(trainer, self.found.lr, True)

    def _first(self, step: Callable[[float], float], rate: float, pl_module: LightningModule) -> float:
        kind, module = type(self).__name__, type(pl_module).__name__
        try:
            return step(rate)
        except Exception as error:
            if str(error).startswith(f"{kind}:"):
                raise
            raise ValueError(
                f"{kind}: training_step of {module} failed ({type(error).__name__}: {error}) in a step that comes "
                f"before on_train_start and on_train_epoch_start of {module}; let it make what it needs in __init__, "
                "setup or on_fit_start, or leave the test out."
            ) from error

    def _use(self, trainer: Trainer, lr: float, groups_too: bool) -> None:
        self._used = lr
        schedules = _schedules(trainer)
        for schedule in schedules:
            schedule.rebase(lr)
        for optimizer in trainer.optimizers if groups_too and not schedules else ():
            own = own_rates(optimizer)
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                set_rate(group, lr * (rate / max(own) if max(own) else 1.0))

    def _tell(self, trainer: Trainer, found: Conclusion) -> None:
        called = self.name or self.title
        file = run_folder(trainer) / "report" / f"{called}.csv"
        write_table(found.rows, file)
        keep_picture(trainer, "train", called, self.draw(found))
        print(f"{found.text}; the curve is in {file}")

    def _refuse_several_loaders(self, trainer: Trainer) -> None:
        loader = trainer.train_dataloader
        if not hasattr(loader, "__iter__") or isinstance(loader, dict | list | tuple):
            raise ValueError(
                f"{type(self).__name__}: it reads one training loader and there are several; put them into one, or "
                "leave it out."
            )

    def state_dict(self) -> dict[str, Any]:
        return {} if self._used is None else {"used": self._used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._used = state_dict.get("used")


def _schedules(trainer: Trainer) -> list[Schedule]:
    return [it for it in callbacks_of(trainer) if isinstance(it, Schedule) and not it.off]
