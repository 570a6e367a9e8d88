"""What an epoch visits of a training set, told to a loader of ours or to a torch DataLoader's sampler."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Sampler, SequentialSampler

__all__ = ["Order", "OwnReader", "PlainReader", "Visit"]


@dataclass(frozen=True)
class Visit:
    """What an epoch trains on.

    Args:
        positions: Of samples in the training set, over all ranks, int64 `(N,)`.
        ordered: They come in this order, instead of the loader's own.
    """

    positions: Tensor
    ordered: bool = False


class OwnReader:
    """A loader that tells by itself."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def visit(self, visit: Visit | None) -> None:
        if visit is None:
            self.loader.visit(None)
        else:
            self.loader.visit(visit.positions, visit.ordered)

    def here(self) -> Tensor:
        """Positions of the samples in the batch handed out last."""
        here: Tensor = self.loader.here
        return here

    def leave(self) -> None:
        pass


class PlainReader:
    """A torch DataLoader, whose batch sampler is given another sampler, which writes down what it gives.

    Args:
        loader: Its `batch_sampler` is torch's own.
        loop: Of the fit, which counts the batches that it fetches.
    """

    def __init__(self, loader: DataLoader[Any], loop: Any) -> None:
        assert isinstance(loader.batch_sampler, BatchSampler)
        self.batches, self.loop = loader.batch_sampler, loop
        self.drop_last = self.batches.drop_last
        self.order = Order(self.batches.sampler, loop)
        self.batches.sampler = self.order

    def visit(self, visit: Visit | None) -> None:
        self.order.visited(visit)
        # Of less than a batch nothing would be left, and Lightning ends a fit that has no batch.
        self.batches.drop_last = self.drop_last and len(self.order) >= self.batches.batch_size

    def here(self) -> Tensor:
        """Positions of the samples in the batch fetched last."""
        size = self.batches.batch_size
        # What the outermost gives is fetched, whoever put it there.
        order: Any = self.batches.sampler
        # By its number, for a batch that collates to None is fetched and left out.
        start = (self.loop._data_fetcher.fetched - 1 - order.before) * size
        return torch.tensor(order.given[start : start + size])

    def leave(self) -> None:
        self.batches.drop_last = self.drop_last
        if self.batches.sampler is self.order:
            self.batches.sampler = self.order.own
        # Another one, which came later, may still stand around it.
        outer: Any = self.batches.sampler
        while isinstance(outer, Order):
            if outer.own is self.order:
                outer.own = self.order.own
            outer = outer.own


class Order(Sampler[int]):
    """Positions in another sampler's order, of which only some are visited.

    Attributes:
        given: Those given in this iteration.
        before: Batches of the epoch that were fetched before it began, as in a run that was resumed.
    """

    def __init__(self, own: Any, loop: Any) -> None:
        self.own, self.loop = own, loop
        self.visit: Visit | None = None
        self.given: list[int] = []
        self.before = 0

    def visited(self, visit: Visit | None) -> None:
        own = self._innermost
        once = isinstance(own, SequentialSampler | DistributedSampler) or (
            isinstance(own, RandomSampler) and not own.replacement and own.num_samples == len(own.data_source)
        )
        if visit is not None and not once:
            raise ValueError(
                f"the training loader's {type(own).__name__} gives samples more than once, or not all of them, so an "
                "epoch of some of them has no meaning; give the loader shuffle=True instead"
            )
        if visit is not None and len(visit.positions) < self._ranks:
            raise ValueError(f"an epoch of {len(visit.positions)} samples is not enough for {self._ranks} processes")
        self.visit = visit

    @property
    def _ranks(self) -> int:
        own = self._innermost
        return own.num_replicas if isinstance(own, DistributedSampler) else 1

    @property
    def _innermost(self) -> Any:
        """The loader's own sampler, around which several of these may stand."""
        return self.own._innermost if isinstance(self.own, Order) else self.own

    def __len__(self) -> int:
        return len(self.own) if self.visit is None else len(self.visit.positions) // self._ranks

    def __iter__(self) -> Iterator[int]:
        self.given, self.before = [], int(self.loop.epoch_loop.batch_progress.current.ready)
        # One by one where all are visited: a sampler that is asked for its end draws once more than one that is not.
        for position in self.own if self.visit is None else self._chosen(list(self.own), self.visit):
            self.given.append(int(position))
            yield position

    def _chosen(self, order: list[int], visit: Visit) -> list[int]:
        chosen = visit.positions.tolist()
        if not visit.ordered:
            visited = set(chosen)
            chosen = [it for it in self._of_all_ranks(order) if it in visited]
        own = self._innermost
        if not isinstance(own, DistributedSampler):
            return chosen
        # As many on every rank, for DDP waits for the others in every forward.
        return chosen[: len(chosen) // self._ranks * self._ranks][own.rank :: self._ranks]

    def _of_all_ranks(self, order: list[int]) -> list[int]:
        own = self._innermost
        if not isinstance(own, DistributedSampler):
            return order
        shards = []
        for rank in range(self._ranks):
            twin = copy(own)
            twin.rank = rank
            shards.append(list(twin))
        # Some come twice at the end, to even out the ranks.
        return list(dict.fromkeys(position for row in zip(*shards, strict=True) for position in row))
