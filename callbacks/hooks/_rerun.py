"""Running a module's training step again, as often as one likes, before the fit takes the step itself.

More is put back than after a look: weights, which a step may move itself (a teacher that follows, manual optimisation),
and what parts of the module keep in plain attributes (`_attributes_kept.py`). Optimizers and schedules stand still
meanwhile.

The step is taken from the module's class, past what other callbacks have put around it, without the hooks that they
have put on its layers, and outside of a DDP wrapper, which awaits one forward for each backward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from ._around import Around
from ._attributes_kept import attributes_kept
from ._unnoticed import as_if_nobody_looked, copied, hooks_of

__all__ = ["Rerun", "StepFailedError"]


class StepFailedError(Exception):
    """The step raised what stands as the cause; the fit's own step will meet it, too, if it was the module's."""


class Rerun:
    """One training step, which each call computes from the same start and which leaves no trace in trainer and module.

    Args:
        trainer: It is fitting.
        pl_module: Whose step.
        batch: As the step is given it; it is copied for each run.
        batch_idx: Its number.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.trainer, self.module, self.batch, self.batch_idx = trainer, pl_module, batch, batch_idx

    def __call__(self) -> Any:
        """What `training_step` returns.

        Raises:
            StepFailedError: it raised something.
        """
        trainer, module = self.trainer, self.module
        with ExitStack() as stack:
            stack.enter_context(attributes_kept(module))
            stack.enter_context(_held(module))
            stack.enter_context(as_if_nobody_looked(trainer, module))
            still = [(trainer.strategy, "optimizer_step"), (module, "manual_backward"), (module, "lr_scheduler_step")]
            still += [(optimizer, "step") for optimizer in trainer.optimizers]
            still += [(it.scheduler, "step") for it in trainer.lr_scheduler_configs]
            for owner, name in still:
                stack.callback(Around(owner, name, _stand_still).undo)
            for hooks in (it for part in module.modules() for it in hooks_of(part)):
                for number in [number for number, hook in hooks.items() if _of_a_callback(hook)]:
                    del hooks[number]
            try:
                return self._step(copied(self.batch))
            except Exception as error:  # of any kind: it is a stranger's step
                raise StepFailedError(f"{type(error).__name__}: {error}") from error

    def _step(self, batch: Any) -> Any:
        numbered = is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        return type(self.module).training_step(self.module, *(batch, self.batch_idx)[: 1 + numbered])


def _stand_still(proceed: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Take the place of an optimizer's step, of a backward pass and of a schedule's step."""


def _of_a_callback(hook: Any) -> bool:
    """Whether a hook is a callback's method, or a function made in one."""
    while isinstance(hook, partial):
        hook = hook.func
    owners = [getattr(hook, "__self__", None)]
    for cell in getattr(hook, "__closure__", None) or ():
        with suppress(ValueError):  # it is empty
            owners.append(cell.cell_contents)
    return any(isinstance(it, Callback) for it in owners)


@contextmanager
def _held(module: LightningModule) -> Iterator[None]:
    """At the end, also by an exception, weights are as before."""
    weights: list[torch.Tensor] = list(module.parameters())
    with torch.no_grad():  # with it a parameter of integers cannot be copied
        copies = torch._foreach_clone(weights) if weights else ()
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                if not torch.equal(weight, copy):
                    weight.copy_(copy)
