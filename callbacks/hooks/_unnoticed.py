"""Looking at a module in the middle of a run without leaving a trace.

One private thing of torch is read, where a module keeps its hooks: the dictionaries among its attributes with `_hooks`
in their names; `tests/callbacks/hooks/test_observe.py` fails when a kind of hook is kept elsewhere.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from ._replay import Replay

__all__ = ["as_if_nobody_looked", "copied", "hooks_of"]


@contextmanager
def as_if_nobody_looked(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Inside, gradients are enabled and precision is the run's; at the end, also by an exception, all is as before.

    Random streams, buffers, metrics, logs, gradients, `requires_grad`, train flags and hooks are put back; only weights
    are not.
    """
    parts = list(pl_module.modules())
    flags = [part.training for part in parts]
    hooks = [(kind, dict(kind)) for part in parts for kind in hooks_of(part)]
    parameters = [(it, it.requires_grad, it.grad) for it in pl_module.parameters()]
    with ExitStack() as stack:
        stack.enter_context(Replay(trainer).without_trace())
        # It enables gradients too, under Lightning's `no_grad` while fitting.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(trainer.precision_plugin.val_step_context())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for parameter, _, _ in parameters:
                parameter.grad = None
            yield
        finally:
            for parameter, needs, gradient in parameters:
                parameter.requires_grad_(needs)
                parameter.grad = gradient
            for kind, before in hooks:
                # In place, for handles of hooks refer to the dictionary.
                kind.clear()
                kind.update(before)
            for part, training in zip(parts, flags, strict=True):
                part.training = training


def hooks_of(part: nn.Module) -> list[dict[int, Any]]:
    """The dictionaries in which a module keeps its hooks."""
    return [value for name, value in vars(part).items() if "_hooks" in name and isinstance(value, dict)]


def copied(value: Any) -> Any:
    """The same with each tensor an ordinary one of its own, also where Lightning made it in inference mode."""
    return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().clone())
