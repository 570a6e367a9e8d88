"""Looking at batches of validation and test, gradients included, so that the run goes on as if nobody had looked."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from ._checks import whole
from ._unnoticed import as_if_nobody_looked, copied
from .evaluation import Evaluation, Stage

__all__ = ["Observe"]


class Observe(Evaluation):
    """Looks at the first batches of a validation or test and writes what it saw to the loggers.

    `look` runs after `validation_step` or `test_step`, with gradients enabled even where Lightning uses inference mode,
    under the run's precision and, if the module is compiled, in eager mode, so that nothing is compiled anew. It may
    call the module in train mode, run backward, draw random numbers, register hooks and log: random streams, buffers,
    metrics, gradients, `requires_grad`, train flags and hooks are put back. Only weights are not; it must not write to
    them. A sanity check is looked at and nothing of it written, so that what is refused is refused before training.

    Args:
        every_n_epochs: While fitting it looks in validations of every n-th epoch, from the first on; `validate` and
            `test` are always looked at. At 0 it looks at nothing.
        batches: How many batches it looks at, the first ones of the first loader.
        name: Part of the state key.

    Raises:
        ValueError: `every_n_epochs` is no integer >= 0 or `batches` none >= 1.
    """

    # Whether all ranks look, each at its own batch; a must if `look` makes collective calls.
    every_rank: ClassVar[bool] = False

    def __init__(self, *, every_n_epochs: int = 1, batches: int = 1, **others: Any) -> None:
        super().__init__(every_n_epochs=every_n_epochs, **others)
        whole(type(self).__name__, "batches", batches, 1)
        self.batches = batches

    @abstractmethod
    def look(self, pl_module: LightningModule, batch: Any, outputs: Any, batch_index: int) -> Mapping[str, float]:
        """What is to be logged of one batch: numbers by name, written as `val/NAME` or `test/NAME`; maybe none.

        Args:
            pl_module: The module without a wrapper, in eval mode.
            batch: A copy of the batch, on the device.
            outputs: A copy of what the step returned.
            batch_index: The batch's number in its loader, from 0.
        """

    def batch_ends(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_index: int, stage: Stage
    ) -> None:
        if batch_index >= self.batches:
            return
        if not (self.every_rank or trainer.is_global_zero):
            return
        with as_if_nobody_looked(trainer, pl_module):
            seen = self.look(pl_module, copied(batch), copied(outputs), batch_index)
        if seen and trainer.is_global_zero and not trainer.sanity_checking:
            for logger in trainer.loggers:
                logger.log_metrics(
                    {f"{stage}/{name}": float(value) for name, value in seen.items()}, trainer.global_step
                )
