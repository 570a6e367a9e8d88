"""What a callback may leave behind on the objects of a run: wrappers, hooks, foreign attributes, swapped weights."""

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from support.conformance.conditions import Condition
from support.conformance.runs import fit
from support.conformance.subjects import Subject

__all__ = ["FailsAt", "Remember", "leftovers", "traces_of"]


def traces_of(trainer: Trainer, module: LightningModule) -> set[str]:
    """Names of all attributes and hooks on the module, its parts, strategy, Trainer, precision and optimizers."""
    parts: dict[str, Any] = {
        "trainer": trainer,
        "strategy": trainer.strategy,
        "precision": trainer.precision_plugin,
        "fit_loop": trainer.fit_loop,
        **{f"module.{name}": part for name, part in module.named_modules()},
        **{f"optimizer {index}": optimizer for index, optimizer in enumerate(trainer.optimizers)},
        **{f"parameter {name}": parameter for name, parameter in module.named_parameters()},
        **{f"buffer {name}": buffer for name, buffer in module.named_buffers()},
    }
    return {f"{label}: {trace}" for label, part in parts.items() for trace in _traces(part)}


def _traces(part: Any) -> Iterator[str]:
    yield type(part).__qualname__
    if isinstance(part, torch.Tensor):
        yield "requires a gradient" if part.requires_grad else "requires no gradient"
    for name, value in getattr(part, "__dict__", {}).items():
        # torch's mark of a first step, which one that computes steps ahead has not taken yet at the same call.
        if name != "_opt_called":
            yield name
        if "hook" in name and isinstance(value, dict):
            yield f"{len(value)} in {name}"
        if hasattr(value, "around"):
            yield f"wrapper around {name}"
    for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
        if isinstance(part, torch.Tensor) and (hooks := getattr(part, name, None)):
            yield f"{len(hooks)} in {name}"


class FailsAt(Callback):
    """Makes the module's `step` raise at its call number `call`, counted from 1.

    It acts from inside the module, as a stranger's bug would, and takes itself off when the run has ended.
    """

    def __init__(self, step: str, call: int) -> None:
        self.step, self.call = step, call

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        kind, step, calls, last = type(pl_module), self.step, iter(range(1, 10**6)), self.call

        def failing(module: LightningModule, *args: Any, **kwargs: Any) -> Any:
            if next(calls) == last:
                raise ZeroDivisionError(f"{step} fails")
            return getattr(kind, step)(module, *args, **kwargs)

        # A class of its own: nothing in the module's own attributes that a wrapper would have to go around.
        pl_module.__class__ = type(kind.__name__, (kind,), {step: failing, "stranger": kind})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        pl_module.__class__ = pl_module.stranger


class Remember(Callback):
    """Keeps the weights that training last had: as a batch begins and after each step, before evaluation may swap them.

    With `written` as a file has them, for a callback that adds parameters folds these in.
    """

    def __init__(self, written: bool) -> None:
        self.written = written
        self.weights: dict[str, torch.Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._note(trainer, pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, pl_module)

    def _note(self, trainer: Trainer, pl_module: LightningModule) -> None:
        weights = trainer.strategy.lightning_module_state_dict() if self.written else dict(pl_module.named_parameters())
        self.weights = {name: value.detach().clone() for name, value in weights.items()}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        # Then a callback may have put early weights back.
        self._note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._note(trainer, pl_module)


def leftovers(subject: Subject, condition: Condition, step: str, call: int) -> list[str]:
    """Guarantee 6 after an exception in `step`: no trace, and the weights are those that training last had."""
    condition = condition.on_behalf_of(subject.kind)
    module, remember = subject.prepared(_seeded(condition)), Remember(bool(subject.kind.adds_parameters))
    ours = _failed(condition, module, [subject.make(), remember, FailsAt(step, call)])
    if subject.kind.changes_architecture:
        theirs = _failed(condition, subject.prepared(_seeded(condition)), [Remember(False), FailsAt(step, call)])
    else:
        theirs = _plainly_failed(condition, step, call)
    found = [f"left behind: {trace}" for trace in sorted(ours - theirs)]
    found += [f"lost: {trace}" for trace in sorted(theirs - ours)]
    found += [
        f"the weights of {name} are not those that training last had"
        for name, value in module.named_parameters()
        if name in remember.weights and not torch.equal(value, remember.weights[name])
    ]
    return [f"after an exception in call {call} of {step}, {line}" for line in found]


def _seeded(condition: Condition) -> LightningModule:
    torch.manual_seed(1)
    return condition.make_module()


@cache
def _plainly_failed(condition: Condition, step: str, call: int) -> frozenset[str]:
    """Traces of the run without any callback, which is the same for all of them."""
    return frozenset(_failed(condition, _seeded(condition), [Remember(False), FailsAt(step, call)]))


def _failed(condition: Condition, module: LightningModule, callbacks: list[Callback]) -> set[str]:
    """Traces of a run that ends in an exception, or is refused."""
    holder = Holder()
    with contextlib.suppress(ZeroDivisionError):
        fit(condition, [*callbacks, holder], module=module, refusable=[type(it).__name__ for it in callbacks])
    return traces_of(holder.trainer, module)


class Holder(Callback):
    """Keeps the Trainer of a run that fails."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.trainer = trainer
