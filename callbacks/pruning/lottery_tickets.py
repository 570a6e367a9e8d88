"""Lottery tickets: train, prune the smallest weights, rewind what is left to early values, and again, in one fit.

Iterative magnitude pruning is Frankle and Carbin's (2019, arXiv:1803.03635, section 2); going back to an early step
instead of the initial one is Frankle et al.'s (2020, arXiv:1912.05671); training each round on disjoint segments of the
data and keeping only the weights that survive on all of them is Hossain et al.'s (2022, arXiv:2212.12770).
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ..hooks._checks import whole
from ..hooks.rounds import Rounds
from .magnitude import magnitude_masks

__all__ = ["LotteryTickets", "overlap", "ticket_sizes"]


def ticket_sizes(weights: int, sparsity: float, rate: float = 0.2) -> list[int]:
    """How many weights are left after each round of iterative pruning, down to the wanted sparsity exactly.

    Each round takes `rate` of those that are left, at least one; the last takes as many as are needed.

    Args:
        weights: How many there are before the first round.
        sparsity: Share that is gone after the last round, in [0, 1).
        rate: Share of the surviving weights that a round takes, in (0, 1).

    >>> ticket_sizes(100, sparsity=0.5, rate=0.2)
    [80, 64, 51, 50]
    """
    left, last, sizes = weights, weights - round(sparsity * weights), []
    while left > last:
        left = max(last, left - max(1, round(rate * left)))
        sizes.append(left)
    return sizes


def overlap(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What two tickets have in common: the logical AND of their boolean masks, by the same names.

    >>> overlap({"w": torch.tensor([True, True, False])}, {"w": torch.tensor([False, True, True])})
    {'w': tensor([False,  True, False])}
    """
    return {name: mask & right[name] for name, mask in left.items()}


@final
class LotteryTickets(Rounds):
    """Prunes in rounds that each train anew from the same early weights, all within one fit.

    At a round's end the smallest `rate` of the surviving weights goes, by magnitude over all layers together; before
    the next batch the others go back to what they were after `rewind_step` optimizer steps, and so do batch norm's
    statistics, what optimizers keep and the module's own learning rate schedules: each round sees the same training.
    When `sparsity` is reached, the ticket goes back a last time and trains to the end of the fit.

    With `segments` a round has as many phases, which all begin with the same weights and each see the classes of one
    segment; a weight survives the round if it survives every phase. One segment is iterative magnitude pruning.

    Give schedules the length of one phase, for they begin again with it. `WarmRestarts` with such a `t_0` does the same
    if `rewind_step` is 0.

    Args:
        sparsity: Share of the weights that are zero in the ticket, in [0, 1); 0 is neutral. With several segments it
            is at least that.
        rate: Share of the surviving weights that a phase prunes, in (0, 1); 0.2 as Frankle and Carbin.
        round_steps: Optimizer steps of a round, from the early weights to its pruning; a multiple of `segments`.
        round_epochs: Instead of `round_steps`, epochs of a round; a multiple of `segments`.
        rewind_step: Optimizer steps after which weights are those that are gone back to, at least 0; they come before
            the first round. 0 is initialisation, as Frankle and Carbin.
        segments: Phases of a round, at least 1; class c belongs to segment c modulo `segments`. 2 in COLT.
        include: Shell patterns of the names of layers or their weights that are pruned; None is all Linear and
            convolutional ones.
        exclude: Shell patterns of those that are left out.
        image_key: Key of the images, if batches are mappings; in other batches they come first. Needed by segments.
        target_key: Key of the labels, if batches are mappings; in other batches they come second.
        name: Part of the state key.

    Shape:
        For segments, labels are integers `(B,)`; every tensor of the batch whose first size is B is cut alike.

    Raises:
        ValueError: from the constructor, for a setting out of range; at set-up, if the Trainer has other masks, or for
            segments under manual optimisation or beside mixed labels; before the first step, if the fit is too short
            for its rounds, if steps of an epoch are not known, or if a pattern matches nothing; at an optimizer step
            that goes past Lightning.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import LotteryTickets
        >>> trainer = Trainer(callbacks=[LotteryTickets(0.8, round_epochs=10)], accelerator="cpu", logger=False)

    Reference: Hossain et al. 2022, arXiv:2212.12770

    BibTeX:
        @inproceedings{frankle2019lottery,
          title = {The Lottery Ticket Hypothesis: Finding Sparse, Trainable Neural Networks},
          author = {Frankle, Jonathan and Carbin, Michael},
          booktitle = {International Conference on Learning Representations},
          year = {2019},
          eprint = {1803.03635},
          archivePrefix = {arXiv},
        }
        @inproceedings{frankle2020linear,
          title = {Linear Mode Connectivity and the Lottery Ticket Hypothesis},
          author = {Frankle, Jonathan and Dziugaite, Gintare Karolina and Roy, Daniel and Carbin, Michael},
          booktitle = {International Conference on Machine Learning},
          year = {2020},
          eprint = {1912.05671},
          archivePrefix = {arXiv},
        }
        @article{hossain2022colt,
          title = {{COLT}: Cyclic Overlapping Lottery Tickets for Faster Pruning of Convolutional Neural Networks},
          author = {Hossain, Md. Ismail and Rakib, Mohammed and Elahi, M. M. Lutfe and Mohammed, Nabeel and
            Rahman, Shafin},
          journal = {arXiv preprint},
          year = {2022},
          eprint = {2212.12770},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The order of the data goes on from round to round. With `rewind_step` also what optimizers keep goes back to
        what it was after that step. COLT's segments are halves of the list of classes, and a batch of its segments is
        full; here a batch has those of its samples that are of the segment. Random segments are not offered: a batch
        does not say which sample of the data is which.

    See also:
        `Pruning`, which prunes while training goes on, once or gradually.
    """

    neutral = ({"sparsity": 0.0},)

    def __init__(
        self,
        sparsity: float,
        rate: float = 0.2,
        round_steps: int | None = None,
        round_epochs: int | None = None,
        rewind_step: int = 0,
        segments: int = 1,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        whole("LotteryTickets", "segments", segments, 1)
        super().__init__(
            rewind_step=rewind_step,
            parts=segments > 1,
            image_key=image_key,
            target_key=target_key,
            include=include,
            exclude=exclude,
            name=name,
        )
        if not (isinstance(sparsity, (int, float)) and 0.0 <= sparsity < 1.0):
            raise ValueError(f"LotteryTickets: sparsity is {sparsity!r}; give a share from 0 (dense) to below 1.")
        if not (isinstance(rate, (int, float)) and 0.0 < rate < 1.0):
            raise ValueError(f"LotteryTickets: rate is {rate!r}; give a share above 0 and below 1.")
        if (round_steps is None) == (round_epochs is None):
            raise ValueError(
                f"LotteryTickets: round_steps is {round_steps!r} and round_epochs is {round_epochs!r}; give one of the "
                "two."
            )
        for argument, value in (("round_steps", round_steps), ("round_epochs", round_epochs)):
            if value is None:
                continue
            whole("LotteryTickets", argument, value, 1)
            if value % segments:
                raise ValueError(
                    f"LotteryTickets: {argument}={value} is no multiple of segments={segments}, whose phases have one "
                    f"length; give {-(-value // segments) * segments}."
                )
        self.sparsity, self.rate, self.segments = sparsity, rate, segments
        self.round_steps, self.round_epochs = round_steps, round_epochs
        self.rounds = 0  # that have ended
        self._segment = 0  # of the running phase
        self._overlap: dict[str, Tensor] = {}  # of the round's phases so far, on rank 0
        self._sizes: list[int] = []

    def choose(self, pl_module: LightningModule, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        self._weights = sum(it.numel() for it in weights.values())
        self._sizes = ticket_sizes(self._weights, self.sparsity, self.rate)
        return weights

    def plan(self, pl_module: LightningModule, epoch: int | None, training: int | None) -> str | None:
        round_steps = self.round_steps
        if round_steps is None:
            assert self.round_epochs is not None
            if epoch is None:
                raise ValueError(
                    "LotteryTickets: how many optimizer steps an epoch has is not known (a loader without length, "
                    "manual optimisation or a GradientAccumulationScheduler); give round_steps in place of "
                    f"round_epochs={self.round_epochs}."
                )
            round_steps = self.round_epochs * epoch
        self.phase_steps = round_steps // self.segments
        if training is None:
            return None
        at_most, at_least = len(self._sizes), len(ticket_sizes(self._weights, self.sparsity, self._boldest))
        # The ticket itself has to train for a step.
        shortest = self.rewind_step + at_least * round_steps + 1
        longest = self.rewind_step + at_most * round_steps + 1
        if training < shortest:
            raise ValueError(
                f"LotteryTickets: sparsity={self.sparsity} at rate={self.rate} takes {at_least} rounds of "
                f"{round_steps} optimizer steps, and training ends after {training}, before the ticket is trained; "
                f"train for {longest - 1 + round_steps} steps, or shorten the rounds."
            )
        if training < longest:
            return (
                f"LotteryTickets: training ends after {training} optimizer steps, and the {at_most} rounds that it may "
                f"take to sparsity={self.sparsity} need {longest}; segments that agree leave it denser."
            )
        return None

    def last_step(self) -> int:
        if self.finished:
            return self.given_at
        return self.rewind_step + len(self._sizes) * self.phase_steps * self.segments

    def forget(self) -> None:
        super().forget()
        self.rounds, self._segment, self._overlap = 0, 0, {}

    def masks(self, step: int, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
        kept = {it: self.kept_masks.get(it, torch.ones_like(weights[it], dtype=torch.bool)) for it in self.chosen}
        left = sum(int(mask.sum()) for mask in kept.values())
        count = max(self._sizes[-1], left - max(1, round(self.rate * left)))
        found = magnitude_masks({it: weights[it] for it in self.chosen}, kept, count)
        ticket = {it: mask.cpu() for it, mask in found.items()}
        self._overlap = overlap(ticket, self._overlap) if self._segment else ticket
        if self._segment + 1 < self.segments:
            return None
        found, self._overlap = self._overlap, {}
        return found

    def phase_ends(self) -> None:
        self._segment = (self._segment + 1) % self.segments
        if self._segment == 0:
            self.rounds += 1
            self.finished = sum(int(it.sum()) for it in self.kept_masks.values()) <= self._sizes[-1]

    def seen(self, target: Tensor) -> Tensor:
        return target % self.segments == self._segment

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "rounds": self.rounds,
            "segment": self._segment,
            "overlap": dict(self._overlap),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.rounds, self._segment = state_dict["rounds"], state_dict["segment"]
        self._overlap = dict(state_dict["overlap"])

    @property
    def _boldest(self) -> float:
        """The share of the surviving weights that a round takes if no two segments prune the same one."""
        return min(self.segments * self.rate, 1.0)
