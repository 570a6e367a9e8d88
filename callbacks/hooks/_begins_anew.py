"""Trainings that begin anew within one fit, and what time it is to those that have to begin with them."""

from abc import abstractmethod

from lightning.pytorch import LightningModule, Trainer

from ._lengths import lengths
from .method import Method, callbacks_of

__all__ = ["BeginsAnew", "lengths_of_a_part", "steps_of_the_part"]


class BeginsAnew(Method):
    """Cuts a fit into parts that each train from the beginning; schedules of the house restart with each."""

    began: int = 0  # optimizer steps that were done when the running part began

    @abstractmethod
    def part(self, training: int) -> int:
        """Optimizer steps of a part, of a fit that has `training`."""


def steps_of_the_part(trainer: Trainer) -> int:
    """Optimizer steps done since training last began anew; of a fit that does not, all of them."""
    return trainer.global_step - max((it.began for it in _of(trainer)), default=0)


def lengths_of_a_part(trainer: Trainer, pl_module: LightningModule) -> tuple[int | None, int | None]:
    """What `lengths` tells, but that the training's length is that of one part."""
    epoch, training = lengths(trainer, pl_module)
    for it in _of(trainer):
        training = None if training is None else it.part(training)
    return epoch, training


def _of(trainer: Trainer) -> list[BeginsAnew]:
    return [it for it in callbacks_of(trainer) if isinstance(it, BeginsAnew) and not it.off]
