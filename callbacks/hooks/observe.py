"""Looking at batches of validation and test, gradients included, so that the run goes on as if nobody had looked.

Public hooks used: `on_validation_batch_end`, `on_test_batch_end`. One private thing of torch is read: a module's hooks,
the dictionaries among its attributes with `_hooks` in their names; `tests/callbacks/hooks/test_observe.py` fails when
a kind of hook is kept elsewhere.
"""

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from ._checks import whole
from ._replay import Replay
from .method import Method, Place

__all__ = ["Observe"]


class Observe(Method):
    """Looks at the first batches of a validation or test and writes what it saw to the loggers.

    `look` runs after `validation_step` or `test_step`, with gradients enabled even where Lightning uses inference mode,
    under the run's precision and, if the module is compiled, in eager mode, so that nothing is compiled anew. It may
    call the module in train mode, run backward, draw random numbers, register hooks and log: random streams, buffers,
    metrics, gradients, `requires_grad`, train flags and hooks are put back. Only weights are not; it must not write to
    them.

    Args:
        every_n_epochs: While fitting it looks in validations of every n-th epoch, from the first on; `validate` and
            `test` are always looked at. At 0 it looks at nothing.
        batches: How many batches it looks at, the first ones of the first loader.
        name: Part of the state key.

    Raises:
        ValueError: `every_n_epochs` is no integer >= 0 or `batches` none >= 1.
    """

    place = Place.OBSERVE
    neutral = ({"every_n_epochs": 0},)
    # Whether all ranks look, each at its own batch; a must if `look` makes collective calls.
    every_rank: ClassVar[bool] = False

    def __init__(self, *, every_n_epochs: int = 1, batches: int = 1, **others: Any) -> None:
        super().__init__(**others)
        kind = type(self).__name__
        whole(kind, "every_n_epochs", every_n_epochs, 0)
        whole(kind, "batches", batches, 1)
        self.every_n_epochs, self.batches = every_n_epochs, batches

    @abstractmethod
    def look(self, pl_module: LightningModule, batch: Any, outputs: Any, batch_index: int) -> Mapping[str, float]:
        """What is to be logged of one batch: numbers by name, written as `val/NAME` or `test/NAME`; maybe none.

        Args:
            pl_module: The module without a wrapper, in eval mode.
            batch: A copy of the batch, on the device.
            outputs: A copy of what the step returned.
            batch_index: The batch's number in its loader, from 0.
        """

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._look_if_due(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx, "val")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        self._look_if_due(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx, "test")

    def _look_if_due(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_index: int,
        loader_index: int,
        stage: str,
    ) -> None:
        if self.off or trainer.sanity_checking or loader_index or batch_index >= self.batches:
            return
        if trainer.state.fn == "fit" and trainer.current_epoch % self.every_n_epochs:
            return
        if not (self.every_rank or trainer.is_global_zero):
            return
        with _as_if_nobody_looked(trainer, pl_module):
            # Copies made here are ordinary tensors, also where Lightning made the batch in inference mode.
            seen = self.look(pl_module, _copy(batch), _copy(outputs), batch_index)
        if seen and trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(
                    {f"{stage}/{name}": float(value) for name, value in seen.items()}, trainer.global_step
                )


@contextmanager
def _as_if_nobody_looked(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    parts = list(pl_module.modules())
    flags = [part.training for part in parts]
    hooks = [(kind, dict(kind)) for part in parts for kind in _hooks_of(part)]
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


def _hooks_of(part: nn.Module) -> list[dict[int, Any]]:
    return [value for name, value in vars(part).items() if "_hooks" in name and isinstance(value, dict)]


def _copy(value: Any) -> Any:
    return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().clone())
