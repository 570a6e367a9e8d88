"""Stochastic weight averaging: the equal mean of the weights that a training passes late in its course.

Izmailov et al. 2018, Algorithm 1: with n weights in the mean, w_swa <- (n w_swa + w) / (n + 1) at the end of each
cycle, and batch norm's statistics measured for w_swa in the end.
"""

from typing import final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from ..hooks._batch_norm import measured_statistics, measuring_parts, refuse_unmeasurable
from ..hooks._checks import number, whole
from ..hooks.averages import Averages

__all__ = ["SWA", "swa_share"]


def swa_share(updates: int) -> float:
    """The share of the current weights in an equal average, after so many earlier updates of it.

    The weights that the average starts with are one of those in it, so it is 1 / (updates + 2).

    >>> [swa_share(updates) for updates in (0, 2)]
    [0.5, 0.25]
    """
    return 1.0 / (updates + 2)


@final
class SWA(Averages):
    """Scores and saves the equal average of the weights from a point of the training on, with statistics measured anew.

    The average starts with the weights as they are at the start and takes in those at the end of each epoch after it,
    or those after every `every_n_steps` optimizer steps. It lives beside the training, which stays what it is: its
    optimizers, schedules, length and random streams. Before the average is scored by validation, and at the end of the
    fit, batch norm's running statistics are measured for it by one pass over the training batches without gradients.
    Every checkpoint's `state_dict` holds the average; a resumed fit goes on with the trained weights.

    It sets no learning rate. The mean of weights is better than the last one while they move about, so let the rate
    end high: constant in the last quarter, or in cycles by `WarmRestarts` with `every_n_steps` its `t_0`. A rate that
    falls below a tenth of what it was when the average started is warned about.

    Args:
        start_fraction: The average starts when this fraction of the training is done, 0 to 1; of `max_epochs` or
            `max_steps`, whichever comes first. 0.75 if no step is given, the paper's. 1 is neutral.
        start_step: Instead of it: optimizer steps after which the average starts, at least 0.
        every_n_steps: Optimizer steps from one of the averaged weights to the next, at least 1; not given, weights at
            the end of each epoch are averaged, as in the paper with a constant rate.
        bn_batches: Training batches on which batch norm is measured, on each rank, at most an epoch; not given, all of
            them, as in the paper; 0 averages the statistics as weights are.
        name: Part of the state key.

    Shape:
        One more tensor for each floating parameter and saved floating buffer, of its shape, on its device; of its
        type, but float32 for half precision.

    Raises:
        ValueError: from the constructor, for a setting out of range or both kinds of start; at set-up, if the Trainer
            has a second average of weights, be it Lightning's; before the first batch, if the training has no end of
            which to take a fraction, or batch norm cannot be measured: manual optimisation, a step that fetches its
            batches, several training loaders, an epoch without end.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import SWA
        >>> trainer = Trainer(callbacks=[SWA(start_fraction=0.75)], accelerator="cpu", logger=False)

    Reference: Izmailov et al. 2018, arXiv:1803.05407

    BibTeX:
        @inproceedings{izmailov2018swa,
          title = {Averaging Weights Leads to Wider Optima and Better Generalization},
          author = {Izmailov, Pavel and Podoprikhin, Dmitrii and Garipov, Timur and Vetrov, Dmitry and Wilson, Andrew
            Gordon},
          booktitle = {Conference on Uncertainty in Artificial Intelligence},
          year = {2018},
          eprint = {1803.05407},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The learning rate is left to the schedule. Statistics are measured before each validation, not only in the end.

    See also:
        `EMA`, which forgets; `WarmRestarts`, for a rate in cycles; `uniform_soup`, the mean of several trainings.
    """

    neutral = ({"start_fraction": 1.0},)

    def __init__(
        self,
        start_fraction: float | None = None,
        start_step: int | None = None,
        every_n_steps: int | None = None,
        bn_batches: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            every_n_steps=1 if every_n_steps is None else every_n_steps,
            start_step=0 if start_step is None else start_step,
            name=name,
        )
        if start_fraction is not None and start_step is not None:
            raise ValueError(
                f"SWA: both start_fraction={start_fraction} and start_step={start_step} were given; leave one of them "
                "None."
            )
        if start_fraction is not None:
            number("SWA", "start_fraction", start_fraction, 0, 1)
        elif start_step is None:
            start_fraction = 0.75
        if bn_batches is not None:
            whole("SWA", "bn_batches", bn_batches, 0)
        self.start_fraction, self.bn_batches = start_fraction, bn_batches
        self.each_epoch = every_n_steps is None
        self._parts: list[nn.Module] = []
        self._rate = 0.0  # learning rate with which the average started in this fit

    def share(self, updates: int) -> float:
        return swa_share(updates)

    def begins(self, trainer: Trainer) -> bool:
        if self.start_fraction is None:
            reached = super().begins(trainer)
        else:
            # Fractions of whole numbers are rounded.
            reached = _done(trainer) >= self.start_fraction - 1e-9
        untrained = trainer.global_step == 0
        begun = reached and (untrained or not self.each_epoch or trainer.is_last_batch)
        self._rate = _rate(trainer) if begun else 0.0
        return begun

    def due(self, trainer: Trainer, steps: int) -> bool:
        return trainer.is_last_batch if self.each_epoch else super().due(trainer, steps)

    def plan(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts[:] = measuring_parts(pl_module)
        self.undo_later(self._parts.clear)
        refuse_unmeasurable("SWA", trainer, pl_module, self.bn_batches)
        if self.start_fraction is not None and _done(trainer) < 0:
            raise ValueError(
                "SWA: the training has no end of which start_fraction could be a part; give max_epochs or max_steps, "
                "or start_step in its place."
            )

    def updated(self, pl_module: LightningModule) -> None:
        self._parts[:] = measuring_parts(pl_module)
        now = _rate(pl_module.trainer)
        if now < self._rate / 10:
            rank_zero_warn(
                f"SWA: the learning rate fell from {self._rate:.3g}, where the average started, to {now:.3g}, so the "
                "averaged weights hardly differ; let the schedule end high, or leave the callback out."
            )
            self._rate = 0.0

    def remeasured(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        if self.bn_batches == 0:
            return {}
        return measured_statistics(trainer, pl_module, self._parts, self.bn_batches)


def _done(trainer: Trainer) -> float:
    """Which fraction of a training is done, by the limit that comes first; below 0 if it has none."""
    limits = [-1.0]
    if trainer.max_steps > 0:
        limits.append(trainer.global_step / trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and trainer.num_training_batches != float("inf"):
        batches = trainer.fit_loop.total_batch_idx + 1 if trainer.global_step else 0
        limits.append(batches / trainer.num_training_batches / trainer.max_epochs)
    return max(limits)


def _rate(trainer: Trainer) -> float:
    """The largest learning rate of all optimizers."""
    return max(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)
