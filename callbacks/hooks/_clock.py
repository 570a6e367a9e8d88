"""What time it is in a training, for those who act before a batch is fetched."""

from typing import Literal, NamedTuple

from lightning.pytorch import LightningModule, Trainer

from ._begins_anew import lengths_of_a_part, steps_before_the_batch

__all__ = ["Clock", "Interval", "Moment"]

Interval = Literal["training", "epoch", "step"]


class Moment(NamedTuple):
    """Where a training stands when a batch is about to come.

    Args:
        step: Optimizer steps done.
        steps: Those of the training; None if they cannot be told (manual optimisation, an endless loader, accumulation
            that changes), and in a rehearsal (`fast_dev_run`), whose end says nothing of the training's.
        epoch: Epochs done, with fractions where their steps can be told.
        epochs: Those of the training; None if they cannot be told, and in a rehearsal.
        done: Share of the training that is done, of its steps or else of its epochs; 0 in a rehearsal; None if the
            training has no end that can be told.
    """

    step: int
    steps: int | None
    epoch: float
    epochs: float | None
    done: float | None

    def at(self, interval: Interval) -> tuple[float, float | None]:
        """How much is done and how much there is, in a unit; what cannot be told is None."""
        if interval == "step":
            return self.step, self.steps
        return (self.epoch, self.epochs) if interval == "epoch" else (self.done or 0.0, 1.0)


class Clock:
    """To be made in `on_train_start`: asking for the loader's length earlier makes Lightning forget its saved state."""

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.trainer = trainer
        self.epoch, self.steps = lengths_of_a_part(trainer, pl_module)

    def now(self) -> Moment:
        """The same for all micro-batches of an optimizer step, and on all processes."""
        trainer, step = self.trainer, steps_before_the_batch(self.trainer)
        last = None if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)
        rehearsal = trainer.fast_dev_run  # type: ignore[attr-defined]  # Lightning declares it nowhere
        if self.epoch is None:
            epoch, epochs = float(trainer.current_epoch), last
        else:
            epoch, epochs = step / self.epoch, None if self.steps is None else self.steps / self.epoch
        if rehearsal:
            return Moment(step, None, epoch, None, 0.0)
        if self.steps is not None:
            return Moment(step, self.steps, epoch, epochs, min(1.0, step / self.steps))
        return Moment(step, None, epoch, epochs, None if last is None else trainer.current_epoch / last)
