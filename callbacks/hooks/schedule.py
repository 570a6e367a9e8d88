"""The schedule seam: learning rates that are a pure function of the optimizer steps done.

The rate of each parameter group is `factor(trainer.global_step)` times the group's own base rate, so ratios between
groups, as of layer-wise decay, stay what `configure_optimizers` made them. Nothing is counted here and nothing saved:
after a resume, inside an accumulation window or when fp16's scaler has skipped an update, the rate follows from where
the Trainer stands. A method may move momentum along with the rates.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ._begins_anew import lengths_of_a_part, steps_of_the_part
from ._counted_steps import refuse_uncounted_steps
from ._group_settings import momentum_of, own_rates, set_momentum, set_rate
from .method import Method, Place

__all__ = ["Schedule"]


class Schedule(Method):
    """Sets the learning rates of every optimizer before each step; a method says `factor` and checks its `plan`.

    A method that also says `momentum` moves that of every group which has one (SGD's momentum, Adam's beta1); a group
    whose momentum the module made 0 keeps 0. Files hold the module's own momentum, and so do the optimizers after the
    fit.

    A step is what `trainer.global_step` counts, as do `max_steps` and `every_n_train_steps`. A step that fp16's scaler
    skipped counts too, so a schedule stays aligned with epochs and files. Under manual optimisation the steps of all
    optimizers are counted together, and rates change between batches only. Where a callback lets training begin anew
    within the fit (`_begins_anew.py`), steps are counted from there, and the training is as long as one part of it.
    Where one shortens epochs (`HardBatches`, for example), steps are those of whole epochs (`_lengths.steps_done`).

    The base rate of a group is what `configure_optimizers` returned; where a schedule of the module is replaced, which
    may have changed it already, it is the rate from which that one began (`initial_lr`).

    Args:
        replace: Take the place of the module's own schedule for this fit.
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the Trainer has two schedules, the module has one and `replace` is false, or the
            method moves momentum and no group has one; before the first batch, if `plan` refuses; at an optimizer step
            that goes past Lightning.
    """

    place = Place.SCHEDULE

    def __init__(self, *, replace: bool, **others: Any) -> None:
        super().__init__(**others)
        self.replace = replace
        self._rates: list[_Rate] = []

    @abstractmethod
    def factor(self, step: int) -> float:
        """What multiplies base rates when `step` optimizer steps are done."""

    @abstractmethod
    def plan(self, epoch: int | None, training: int | None) -> str | None:
        """Refuse what does not fit before the first batch, or return a warning.

        Args:
            epoch: Optimizer steps of an epoch; None if they are not known or not always the same.
            training: Optimizer steps of the whole training, from its first epoch on; None if it has no end, or is a
                rehearsal (`fast_dev_run`) whose end says nothing of the training's.
        """

    def momentum(self, step: int) -> float | None:
        """The momentum of groups that have one when `step` optimizer steps are done; None leaves all as they are."""
        return None

    @property
    def own_rate(self) -> float:
        """The highest base rate among the groups of all optimizers; 1 outside of a fit."""
        return max((float(base) for rate in self._rates for base in rate.base_lrs), default=1.0)

    def share(self, lr: float | None) -> float:
        """The factor with which the group of the highest base rate has the rate `lr`; None is its own.

        Raises:
            ValueError: all base rates are 0.
        """
        if lr is None:
            return 1.0
        if not self.own_rate:
            raise ValueError(
                f"{type(self).__name__}: all learning rates of the module are 0, so no factor makes one of them {lr}; "
                "give the optimizer the rates that its groups are to have among themselves."
            )
        return lr / self.own_rate

    def rebase(self, lr: float) -> None:
        """During a fit, let the highest base rate be `lr`; the others keep their ratio to it."""
        own = self.own_rate
        for rate in self._rates:
            rate.base_lrs = [lr * (base / own if own else 1.0) for base in rate.base_lrs]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or self.off:
            return
        rivals = self.rivals(trainer, Schedule)
        if rivals:
            kinds = " and ".join(type(it).__name__ for it in (self, *rivals))
            raise ValueError(f"{type(self).__name__}: {kinds} would set the same learning rates; keep one of them.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        refuse_uncounted_steps(self, trainer)
        configs = trainer.lr_scheduler_configs
        if configs and not self.replace:
            kinds = " and ".join(type(config.scheduler).__name__ for config in configs)
            raise ValueError(
                f"{type(self).__name__}: {type(pl_module).__name__} has a schedule of its own ({kinds}), and two "
                "cannot set one rate; pass replace=True to take its place, or leave it out of configure_optimizers."
            )

        def factor() -> float:
            return self.factor(steps_of_the_part(trainer))

        def momentum() -> float | None:
            return self.momentum(steps_of_the_part(trainer))

        # Each takes the position of the one it replaces: Lightning saves and restores schedules by position.
        taken = [
            (_Rate(config.scheduler.optimizer, factor, momentum, config.scheduler), config.name) for config in configs
        ]
        held = {id(rate.optimizer) for rate, _ in taken}
        taken += [(_Rate(it, factor, momentum, None), None) for it in trainer.optimizers if id(it) not in held]
        if self.momentum(0) is not None and not any(own for rate, _ in taken for own in rate.momenta):
            kinds = " and ".join(type(it).__name__ for it in trainer.optimizers)
            raise ValueError(
                f"{type(self).__name__}: no parameter group of {type(pl_module).__name__} has a momentum or a beta1 "
                f"({kinds}), so there is none to move; give the optimizer one above 0, or pass cycle_momentum=False."
            )
        own = configs[:]
        configs[:] = [LRSchedulerConfig(rate, name=name, interval="step") for rate, name in taken]
        self._rates = [rate for rate, _ in taken]
        self.undo_later(lambda: _put_back(configs, own))
        self.undo_later(self._rates.clear)
        for rate in self._rates:
            self.undo_later(rate.leave)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self._rates:
            # Not in on_fit_start: asking for the loader's length there makes Lightning forget the loader's saved state.
            warning = self.plan(*lengths_of_a_part(trainer, pl_module))
            if warning is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]  # declared nowhere
                rank_zero_warn(warning)
        self._set(trainer, type(pl_module).__name__)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._set(trainer, type(pl_module).__name__)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        for rate in self._rates:
            for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
                if optimizer is rate.optimizer:
                    rate.give_back(state["param_groups"])

    def _set(self, trainer: Trainer, module: str) -> None:
        # Lightning's StochasticWeightAveraging takes the place of one when its averaging begins.
        standing = {id(config.scheduler) for config in trainer.lr_scheduler_configs}
        for rate in self._rates:
            if id(rate) not in standing:
                continue
            groups = len(rate.optimizer.param_groups)
            if groups != len(rate.base_lrs):
                raise ValueError(
                    f"{type(self).__name__}: {type(rate.optimizer).__name__} of {module} had {len(rate.base_lrs)} "
                    f"parameter groups when training was set up and has {groups} now, whose base rate is not known; "
                    "return all groups from configure_optimizers."
                )
            rate.step()


class _Rate(LRScheduler):
    """What stands in the Trainer's list of schedules, where LearningRateMonitor and `lr_schedulers()` look.

    Files hold the state of the schedule that it replaces, untouched, so that they also load without it.
    """

    # LRScheduler's own constructor would add a key to the optimizer's groups and wrap its `step`, both for good.
    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[], float],
        momentum: Callable[[], float | None],
        replaced: Any,
    ) -> None:
        self.optimizer = optimizer
        self.factor, self.momentum = factor, momentum
        self.replaced = replaced
        groups = optimizer.param_groups
        own = [float(group["lr"]) for group in groups] if replaced is None else own_rates(optimizer)
        self.base_lrs = [*own]
        self.momenta = [momentum_of(group) for group in groups]
        self._last_lr = list(self.base_lrs)
        self._moved = False

    def get_lr(self) -> list[float | Tensor]:
        factor = self.factor()
        return [base * factor for base in self.base_lrs]

    def step(self, *_: Any, **__: Any) -> None:
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            set_rate(group, rate)
        momentum = self.momentum()
        if momentum is not None:
            self._moved = True
            for group, own in zip(self.optimizer.param_groups, self.momenta, strict=True):
                if own:
                    set_momentum(group, momentum)

    def leave(self) -> None:
        self.give_back(self.optimizer.param_groups)

    def give_back(self, groups: Iterable[dict[str, Any]]) -> None:
        """Write the module's own momentum, where it was moved, into groups of the optimizer or of its saved state."""
        for group, own in zip(groups, self.momenta, strict=False):
            if own and self._moved:
                set_momentum(group, own)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.replaced is None else self.replaced.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.replaced is not None:
            self.replaced.load_state_dict(state_dict)


def _put_back(configs: list[LRSchedulerConfig], own: list[LRSchedulerConfig]) -> None:
    configs[:] = own
