"""How many optimizer steps an epoch and a training have, and images a validation, where that can be told."""

from contextlib import suppress

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader

from .method import callbacks_of

__all__ = ["lengths", "validation_images"]


def lengths(trainer: Trainer, pl_module: LightningModule) -> tuple[int | None, int | None]:
    """Optimizer steps of an epoch and of the training, each None if it cannot be told.

    To be asked in `on_train_start`: asking for the loader's length earlier makes Lightning forget the loader's saved
    state.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    uneven = any(isinstance(it, GradientAccumulationScheduler) for it in callbacks_of(trainer))
    epoch = None
    if pl_module.automatic_optimization and not uneven and batches != float("inf"):
        epoch = -(-int(batches) // trainer.accumulate_grad_batches)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning declares it nowhere
        return epoch, None
    ends = [trainer.max_steps] if trainer.max_steps != -1 else []
    if epoch is not None and epochs is not None and epochs != -1:
        ends.append(epoch * epochs)
    return epoch, min(ends, default=None)


def validation_images(trainer: Trainer, batch_size: int) -> float:
    """How many images a fit's validation has at most, in the first loader of all ranks; infinity if nobody knows.

    Args:
        trainer: It is in a fit, maybe in its sanity check.
        batch_size: Images of the first batch.
    """
    batches = trainer.num_val_batches
    most = float((batches[0] if isinstance(batches, list) else batches) * batch_size * trainer.world_size)
    with suppress(AttributeError, TypeError):
        most = min(most, len(CombinedLoader(trainer.val_dataloaders).flattened[0].dataset))
    return most
