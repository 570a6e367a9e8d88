"""Refusing optimizer steps that go past Lightning, which neither counts them nor lets a callback act around them."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from ._around import Around
from .method import Method

__all__ = ["refuse_uncounted_steps"]


def refuse_uncounted_steps(method: Method, trainer: Trainer) -> None:
    """From now until the method's undo, refuse a step of the Trainer's optimizers outside `strategy.optimizer_step`.

    To be called in `on_fit_start`, when the optimizers are there.

    Raises:
        ValueError: At such a step, before weights change.
    """
    kind = type(method).__name__
    counted: list[Optimizer] = []

    def step(proceed: Callable[..., Any], optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        counted.append(optimizer)
        try:
            return proceed(optimizer, *args, **kwargs)
        finally:
            counted.pop()

    def refuse(optimizer: Optimizer, *_: Any) -> None:
        if any(it is optimizer for it in counted):
            return
        way_out = (
            "in the module's `optimizer_step` call `optimizer.step(closure=optimizer_closure)` or "
            "`super().optimizer_step(...)`, not a step of `optimizer.optimizer`"
            if trainer.lightning_module.automatic_optimization
            else "call `step` of what `self.optimizers()` gives, without `use_pl_optimizer=False` and not of its "
            "`.optimizer`"
        )
        raise ValueError(
            f"{kind}: {type(optimizer).__name__} was stepped past Lightning, which does not count such a step, so "
            f"{kind} could do nothing; {way_out}."
        )

    method.undo_later(Around(trainer.strategy, "optimizer_step", step).undo)
    for optimizer in trainer.optimizers:
        method.undo_later(optimizer.register_step_pre_hook(refuse).remove)
