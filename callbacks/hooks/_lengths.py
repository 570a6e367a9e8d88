"""How many optimizer steps an epoch and a training have and are done, and images a validation has.

What is done in an epoch is read from the fit loop's `batch_progress`, which checkpoints hold.
"""

from contextlib import suppress
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader

from .method import callbacks_of
from .training_order import TrainingOrder

__all__ = ["lengths", "steps_done", "validation_images"]


def lengths(trainer: Trainer, pl_module: LightningModule) -> tuple[int | None, int | None]:
    """Optimizer steps of an epoch and of the training, each None if it cannot be told.

    Where a callback shortens epochs, they are those of whole ones. To be asked in `on_train_start`: asking for the
    loader's length earlier makes Lightning forget the loader's saved state.
    """
    batches, epochs = _whole_epoch(trainer) or trainer.num_training_batches, trainer.max_epochs
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


def steps_done(trainer: Trainer) -> int:
    """Optimizer steps done, in the unit of `lengths`: where a callback shortens epochs, as if all had been whole.

    Then the first and the last step of an epoch stand where those of a whole one do, and the others evenly between
    them, so what moves with the steps is at its end with the last one. A training that ends by `max_steps` counts its
    steps as they are.
    """
    if not _whole_epoch(trainer):
        return trainer.global_step
    epoch, training = lengths(trainer, trainer.lightning_module)
    if epoch is None or training is None or training != epoch * (trainer.max_epochs or 0):
        return trainer.global_step
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    done, batches = progress.processed, int(trainer.num_training_batches)
    window = trainer.accumulate_grad_batches
    within, steps = done // window, -(-batches // window)
    if done >= batches:
        within = epoch
    elif steps != epoch:
        within = within * (epoch - 1) // (steps - 1) if steps > 1 else epoch - 1
    return trainer.current_epoch * epoch + within


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


def _whole_epoch(trainer: Trainer) -> float:
    """Batches of an epoch that visits all samples, where a callback leaves some out of others; elsewhere 0."""
    orders = [it for it in callbacks_of(trainer) if isinstance(it, TrainingOrder) and not it.off]
    return orders[0].training_set.batches if orders and orders[0].training_set is not None else 0
