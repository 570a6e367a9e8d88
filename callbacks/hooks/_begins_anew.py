"""Trainings that begin anew within one fit, and what time it is to those that have to begin with them."""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Generator, Tensor

from ._lengths import lengths, steps_done
from .method import Method, callbacks_of

__all__ = [
    "BeginsAnew",
    "drawn_anew",
    "lengths_of_a_part",
    "steps_before_the_batch",
    "steps_of_the_part",
    "too_long_a_schedule",
]


class BeginsAnew(Method):
    """Cuts a fit into parts that each train from the beginning; schedules of the house restart with each."""

    began: int = 0  # optimizer steps that were done when the running part began

    @abstractmethod
    def part(self, training: int) -> int:
        """Optimizer steps of a part, of a fit that has `training`."""

    @abstractmethod
    def over(self, step: int) -> bool:
        """Whether the running part is over when `step` optimizer steps are done, and the next batch begins another."""


def steps_of_the_part(trainer: Trainer) -> int:
    """Optimizer steps done since training last began anew; of a fit that does not, all of them (`steps_done`)."""
    parts = _of(trainer)
    return trainer.global_step - max(it.began for it in parts) if parts else steps_done(trainer)


def steps_before_the_batch(trainer: Trainer) -> int:
    """The same for a batch that is fetched, but not yet begun: 0 where training begins anew with it."""
    return 0 if any(it.over(trainer.global_step) for it in _of(trainer)) else steps_of_the_part(trainer)


def lengths_of_a_part(trainer: Trainer, pl_module: LightningModule) -> tuple[int | None, int | None]:
    """What `lengths` tells, but that the training's length is that of one part."""
    epoch, training = lengths(trainer, pl_module)
    for it in _of(trainer):
        training = None if training is None else it.part(training)
    return epoch, training


def too_long_a_schedule(owner: str, trainer: Trainer, epoch: int | None, part: int) -> str | None:
    """A warning if a schedule of the module's own, which begins anew with each part, was planned for more steps.

    Args:
        owner: Who warns.
        trainer: Whose schedules are asked.
        epoch: Optimizer steps of an epoch; None if they are not known.
        part: Optimizer steps of a part.
    """
    for config in trainer.lr_scheduler_configs:
        unit = 1 if config.interval == "step" else epoch
        for argument in ("T_max", "total_steps"):
            planned = getattr(config.scheduler, argument, None)
            if unit is not None and isinstance(planned, int) and planned * unit * config.frequency > part:
                return (
                    f"{owner}: {type(config.scheduler).__name__} begins anew with each generation, and its "
                    f"{argument}={planned} ({config.interval}s) is longer than the {part} optimizer steps of one; give "
                    "it the length of a generation."
                )
    return None


def drawn_anew(tensors: Mapping[str, Tensor], random: Generator) -> dict[str, Tensor]:
    """Tensors by name with the numbers of each one in another order, as from the same distribution drawn once more.

    Constants, such as a norm's ones and zeros, stay what they are.

    >>> drawn_anew({"bias": torch.zeros(2)}, Generator().manual_seed(0))
    {'bias': tensor([0., 0.])}
    """
    orders = {name: torch.randperm(it.numel(), generator=random) for name, it in tensors.items()}
    return {name: it.flatten()[orders[name].to(it.device)].view_as(it) for name, it in tensors.items()}


def _of(trainer: Trainer) -> list[BeginsAnew]:
    return [it for it in callbacks_of(trainer) if isinstance(it, BeginsAnew) and not it.off]
