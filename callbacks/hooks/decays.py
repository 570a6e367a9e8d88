"""The decays seam: weight decays that are a pure function of the optimizer steps done.

As in `schedule.py`, nothing is counted here and nothing saved: after a resume, inside an accumulation window or when
fp16's scaler has skipped an update, the decay follows from where the Trainer stands.

Public hooks used: `setup`, `on_fit_start`, `on_train_start`, `on_train_batch_start`.
"""

from abc import abstractmethod
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from ._begins_anew import lengths_of_a_part, steps_of_the_part
from ._counted_steps import refuse_uncounted_steps
from .method import Method, Place

__all__ = ["Decays"]


class Decays(Method):
    """Sets the weight decay of parameter groups before each step; a method says `decay` and checks its `plan`.

    Groups whose weight decay `configure_optimizers` made 0, as is usual for norms and biases, keep 0. All others get
    what the method says. A step is what `trainer.global_step` counts; where a callback lets training begin anew within
    the fit, steps are counted from there.

    Args:
        others: Go to the next base class, among them `name`.

    Raises:
        ValueError: at set-up, if the Trainer has two of them; before the first batch, if no group has a weight decay or
            `plan` refuses; at an optimizer step that goes past Lightning.
    """

    place = Place.SCHEDULE

    def __init__(self, **others: Any) -> None:
        super().__init__(**others)
        # Each optimizer, and the weight decays that the module gave its groups. Not the groups themselves: a checkpoint
        # exchanges them.
        self._own: list[tuple[Optimizer, list[float]]] = []

    @abstractmethod
    def decay(self, step: int, own: float) -> float:
        """The weight decay when `step` optimizer steps are done, of a group that the module gave `own`, above 0."""

    @abstractmethod
    def plan(self, training: int | None) -> str | None:
        """Refuse what does not fit before the first batch, or return a warning.

        Args:
            training: Optimizer steps of the whole training; None if it has no end, or is a rehearsal (`fast_dev_run`).
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not self.off and (rivals := self.rivals(trainer, Decays)):
            kinds = " and ".join(type(it).__name__ for it in (self, *rivals))
            raise ValueError(f"{type(self).__name__}: {kinds} would set the same weight decays; keep one of them.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if self.off:
            return
        # Here, before a checkpoint's optimizers are restored, groups are as the module made them.
        own = [(it, [float(group.get("weight_decay", 0.0)) for group in it.param_groups]) for it in trainer.optimizers]
        if not any(decay for _, decays in own for decay in decays):
            kinds = " and ".join(type(it).__name__ for it, _ in own) or "no optimizer"
            raise ValueError(
                f"{type(self).__name__}: no parameter group of {type(pl_module).__name__} has a weight decay "
                f"({kinds}), so there is nothing to change; give the optimizer a weight_decay above 0."
            )
        refuse_uncounted_steps(self, trainer)
        self._own = own
        self.undo_later(self._own.clear)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if not self._own:
            return
        # Not in on_fit_start: asking for the loader's length there makes Lightning forget the loader's saved state.
        warning = self.plan(lengths_of_a_part(trainer, pl_module)[1])
        if warning is not None:
            rank_zero_warn(warning)
        self._set(trainer, type(pl_module).__name__)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._set(trainer, type(pl_module).__name__)

    def _set(self, trainer: Trainer, module: str) -> None:
        for optimizer, decays in self._own:
            if len(optimizer.param_groups) != len(decays):
                raise ValueError(
                    f"{type(self).__name__}: {type(optimizer).__name__} of {module} had {len(decays)} parameter groups "
                    f"when training was set up and has {len(optimizer.param_groups)} now, whose own weight decay is "
                    "not known; return all groups from configure_optimizers."
                )
            for group, own in zip(optimizer.param_groups, decays, strict=True):
                if own:
                    group["weight_decay"] = self.decay(steps_of_the_part(trainer), own)
