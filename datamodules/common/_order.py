"""Which samples an epoch visits, in which order, on which rank and in which batch."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from ._draws import Stream, draw_bits

__all__ = ["BalancedOrder", "EpochOrder", "FixedOrder", "batch_bounds", "kept_in"]


class EpochOrder:
    """All samples in an order that is a function of (seed, epoch).

    Args:
        samples: How many there are.
        seed: Another seed, other orders.
    """

    def __init__(self, samples: int, seed: int = 0) -> None:
        self.samples, self.seed = samples, seed
        self.given, self.passes = 0, 0

    @property
    def epoch(self) -> int:
        """The epoch last given, plus the passes made since: a loop that never tells the epoch gets new orders too."""
        return self.given + self.passes

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.given:
            self.given, self.passes = epoch, 0

    def positions(self) -> Tensor:
        """Positions of the samples in the order of this epoch, int64 `(samples,)`."""
        return draw_bits(torch.arange(self.samples), self.seed, self.epoch, Stream.ORDER).argsort(stable=True)


class BalancedOrder(EpochOrder):
    """As many places of an epoch for every class, in an order that is a function of (seed, epoch).

    Counts of classes differ by at most one; which classes get one more is drawn anew each epoch. Within a class so do
    counts of samples: a small class comes again and again, of a large one other samples each epoch. A sample of several
    classes (P > N) is drawn for each of them.

    Args:
        targets: Class of each sample, int64 `(N,)`, or several for some `(P,)`; classes without samples are left out.
        seed: Another seed, other orders.
        owner: Whose class each of `targets` is, int64 `(P,)`; None with one class a sample.
        samples: N where there is an `owner`; samples without a class never come.
    """

    def __init__(self, targets: Tensor, seed: int = 0, owner: Tensor | None = None, samples: int | None = None) -> None:
        super().__init__(len(targets) if samples is None else samples, seed)
        self.targets = targets
        self.owner = torch.arange(len(targets)) if owner is None else owner
        self.sizes = targets.bincount()

    def positions(self) -> Tensor:
        """Positions of the samples, int64 `(samples,)`; one above `samples` is a copy, as `ImageSet.fetch` says."""
        keys = self.seed, self.epoch, Stream.BALANCE
        shuffled = draw_bits(torch.arange(len(self.targets)), *keys).argsort(stable=True)
        members = shuffled[self.targets[shuffled].argsort(stable=True)]
        present = self.sizes.nonzero()[:, 0]
        # Counters beyond those of the samples: draws that nothing else uses.
        lots = draw_bits(len(self.targets) + present, *keys).argsort(stable=True)
        shares = torch.full((len(present),), self.samples // len(present))
        shares[lots[: self.samples % len(present)]] += 1
        rank = torch.arange(self.samples) - (shares.cumsum(0) - shares).repeat_interleave(shares)
        size = self.sizes[present].repeat_interleave(shares)
        first = (self.sizes.cumsum(0) - self.sizes)[present].repeat_interleave(shares)
        chosen = self.owner[members[first + rank % size]]
        # How often each has come before, for its copies differ.
        grouped = chosen.argsort(stable=True)
        run = torch.arange(self.samples) - torch.searchsorted(chosen[grouped], chosen[grouped])
        return (chosen + self.samples * run[grouped.argsort()])[super().positions()]


class FixedOrder(EpochOrder, SequentialSampler):
    """All samples as they come; a SequentialSampler, because that is how Lightning tells what is not shuffled."""

    def __init__(self, samples: int) -> None:
        EpochOrder.__init__(self, samples)
        SequentialSampler.__init__(self, range(samples))

    def positions(self) -> Tensor:
        return torch.arange(self.samples)


def kept_in(order: Tensor, visited: tuple[Tensor, bool] | None) -> Tensor:
    """Those positions of an order that are visited; with True beside them in their own order, None keeps all.

    >>> kept_in(torch.tensor([2, 0, 1]), (torch.tensor([1, 2]), False))
    tensor([2, 1])
    """
    if visited is None:
        return order
    positions, ordered = visited
    return positions if ordered else order[torch.isin(order, positions)]


def batch_bounds(
    samples: int, batch_size: int, rank: int = 0, world_size: int = 1, drop_last: bool = False
) -> list[tuple[int, int]]:
    """Where the batches of one rank start and stop inside its shard, which is every `world_size`-th sample from `rank`.

    All ranks get the same number of batches, none of them empty, because DDP waits for the others in every forward. No
    sample is repeated and none is lost (but for `drop_last`): where a rank with one sample less would run out, its last
    batches are smaller; with `batch_size=1` one batch may have to hold two samples.

    Raises:
        ValueError: there are too few samples for a batch on every rank.
    """
    smallest, largest, own = samples // world_size, -(-samples // world_size), len(range(rank, samples, world_size))
    count = smallest // batch_size if drop_last else min(-(-largest // batch_size), smallest)
    if count == 0:
        needed = f"{world_size} batches of {batch_size}" if drop_last else f"{world_size} processes"
        way_out = "a smaller batch_size or drop_last=False" if drop_last else "fewer devices"
        raise ValueError(f"{samples} images are not enough for {needed}; use {way_out}")
    if drop_last:
        edges = [batch_size * number for number in range(count + 1)]
    else:
        edges = [min(batch_size * number, own - (count - number)) for number in range(count)] + [own]
    return list(pairwise(edges))
