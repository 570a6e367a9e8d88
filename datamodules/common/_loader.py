"""A loader that shards by rank, continues where it was saved and draws nothing from global random state."""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_vision.images import BadImageError

from ._order import BalancedOrder, EpochOrder, FixedOrder, batch_bounds, kept_in
from ._sets import Fetched, ImageSet, SampleError

__all__ = ["Sampler", "ShardedLoader"]

Sampler = Literal["all", "balanced"]

Job = tuple[list[int], int]
Batch = tuple[Any, ...] | dict[str, Any]


class ShardedLoader:
    """Batches `(image, target, index)` of one rank, in an order that is a function of (seed, epoch).

    Not a torch DataLoader, so that Lightning neither replaces the order nor shuffles; with workers there is one inside.
    The epoch and the place in it are read when the first batch is asked for, not when the iterator is made: Lightning
    makes one to try and makes the one it uses before it tells the epoch. Its place is the loader's, so that a second
    iteration takes over from the first.

    Args:
        dataset: What to fetch from.
        batch_size: Samples of this rank in a batch.
        seed: Fixes the orders.
        shuffle: A new order each epoch, otherwise that of the dataset.
        sampler: What a shuffled epoch visits: `all` samples once, or as many of every class, by the dataset's targets.
        drop_last: Leave out what does not fill a batch on every rank.
        rank: Which shard this is.
        world_size: How many shards there are.
        num_workers: Processes that fetch; they stay until `close`.
        multiprocessing_context: How they start: `fork`, `spawn`, `forkserver` or None for the system's default.
        pin_memory: Batches lie in page-locked memory, from which copies to a GPU need not be waited for.
        as_dict: Batches are `{"image", "index"}`, with labels also `"target"`.

    Raises:
        ValueError: too few samples for a batch on every rank.
        BadImageError, SampleError: a sample cannot be used; raised in the main process from workers, too.
        RuntimeError: an iteration goes on after another one began.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        sampler: Sampler = "all",
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        multiprocessing_context: str | None = None,
        pin_memory: bool = False,
        as_dict: bool = False,
    ) -> None:
        self.dataset = dataset
        if not shuffle:
            self.sampler: EpochOrder = FixedOrder(len(dataset))
        elif sampler == "all":
            self.sampler = EpochOrder(len(dataset), seed)
        elif dataset.shown is not None:
            owner, label = dataset.shown.unbind(1)
            self.sampler = BalancedOrder(label, seed, owner, len(dataset))
        else:
            assert dataset.targets is not None
            self.sampler = BalancedOrder(dataset.targets, seed)
        self.batch_sampler = None  # Lightning reads it wherever there is a `sampler`
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.pin_memory, self.as_dict = num_workers, pin_memory, as_dict
        self.multiprocessing_context = multiprocessing_context
        self._skipped: list[str] = []
        self._plan: dict[str, int | str] = {
            "samples": len(dataset),
            "answers": dataset.answers,
            "batch_size": batch_size,
            "world_size": world_size,
            "seed": seed,
            "shuffle": shuffle,
            "sampler": sampler,
            "drop_last": drop_last,
        }
        self.batch_size = batch_size
        self._split = batch_size, rank, world_size, drop_last
        self._bounds = batch_bounds(len(dataset), *self._split)
        self._visited: tuple[Tensor, bool] | None = None
        self.here = torch.empty(0, dtype=torch.int64)
        self._place, self._yielded, self._resuming = (0, 0), 0, False
        self._begun = 0
        self._jobs: list[Job] = []
        self._workers: DataLoader[Any] | None = None
        # Named so that Lightning's `CombinedLoader.reset` stops the workers, also after an exception.
        self._iterator: Iterator[Any] | None = None

    @property
    def epoch(self) -> int:
        """The epoch that the batches now coming belong to."""
        return self.sampler.epoch

    def __len__(self) -> int:
        return len(self._bounds)

    def visit(self, positions: Tensor | None, ordered: bool = False) -> None:
        """Hand out these samples alone, from the next iteration on; what a sample is made into stays the same.

        `here` holds the positions of the batch that was handed out last, int64 `(B,)`.

        Args:
            positions: In the dataset, int64 `(N,)`; None for all again.
            ordered: They come in this order, instead of that of the epoch.

        Raises:
            ValueError: too few samples for a batch on every rank; epochs are balanced.
        """
        if isinstance(self.sampler, BalancedOrder):
            raise ValueError(
                "an epoch of sampler='balanced' has places for classes, not for samples; use sampler='all'"
            )
        count = len(self.dataset) if positions is None else len(positions)
        size, rank, ranks, drop_last = self._split
        # Of less than a batch the rest is not dropped, for nothing would be left.
        self._bounds = batch_bounds(count, size, rank, ranks, drop_last and count >= size * ranks)
        self._visited = None if positions is None else (positions, ordered)

    def __iter__(self) -> Iterator[Batch]:
        self._report()
        self._begun = turn = self._begun + 1
        order = self.sampler
        place = order.given, order.passes
        self._yielded = self._yielded if self._resuming and place == self._place else 0
        self._place, self._resuming = place, False
        shard = kept_in(order.positions(), self._visited)[self.rank :: self.world_size]
        jobs = [(shard[start:stop], order.epoch) for start, stop in self._bounds[self._yielded :]]
        for fetched in self._fetch(jobs):
            self._yielded += 1
            self._skipped += fetched.skipped
            self.here = fetched.index % len(self.dataset)
            if self._yielded == len(self):
                self._report()  # now, because Lightning does not come back after the last batch
            yield self._batch(fetched)
            if turn != self._begun:
                raise RuntimeError("this loader serves one iteration at a time and another began; make a second loader")
        if place == (order.given, order.passes):
            order.passes += 1

    def state_dict(self) -> dict[str, Any]:
        """Epoch and number of batches handed out (not of batches fetched ahead), with what they depend on."""
        here = self.sampler.given, self.sampler.passes
        yielded = self._yielded if here == self._place else 0
        return {"epoch": here[0], "passes": here[1], "yielded": yielded, "batches": len(self), **self._plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that had been handed out, if the epoch is still the saved one.

        Raises:
            ValueError: inside an epoch, other batches would follow than those that were left, because the batch size,
                the number of processes, the seed, the sampler, the data or their answers differ.
        """
        state = {"sampler": "all", "answers": "none", **state}  # files of version 0.1 know no other
        within = 0 < state["yielded"] < state["batches"]
        for name, value in self._plan.items():
            if within and state[name] != value:
                raise ValueError(
                    f"cannot resume inside epoch {state['epoch']} with {name} {value}, it was saved with {name} "
                    f"{state[name]}; use that again or a checkpoint from an epoch's end"
                )
        self._place = self.sampler.given, self.sampler.passes = state["epoch"], state["passes"]
        self._yielded = len(self) if state["yielded"] >= state["batches"] else state["yielded"]
        self._resuming = True

    def close(self) -> None:
        """Stop the workers and report what was left out; iterating again starts new workers."""
        self._workers = self._iterator = None
        self._report()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_workers": None, "_iterator": None}

    def _fetch(self, jobs: list[tuple[Tensor, int]]) -> Iterator[Fetched]:
        if self.num_workers == 0:
            for index, epoch in jobs:
                fetched = self.dataset.fetch(index, epoch)
                yield fetched.pin_memory() if self.pin_memory else fetched
            return
        if self._workers is None or self._iterator is None:
            self._workers = DataLoader(
                _Fetching(self.dataset),
                sampler=self._jobs,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                multiprocessing_context=self.multiprocessing_context,
                persistent_workers=True,
                pin_memory=self.pin_memory,
                generator=torch.Generator(),  # the seed of the workers is not taken from the global stream
            )
        self._jobs[:] = [(index.tolist(), epoch) for index, epoch in jobs]
        self._iterator = iter(self._workers)
        for _ in jobs:
            fetched = next(self._iterator)
            if isinstance(fetched, ValueError):
                self.close()
                raise fetched
            yield fetched

    def _batch(self, fetched: Fetched) -> Batch:
        parts = {"image": fetched.image, "target": fetched.target, "index": fetched.index}
        present = {name: part for name, part in parts.items() if part is not None}
        return present if self.as_dict else tuple(present.values())

    def _report(self) -> None:
        if self._skipped:
            named = ", ".join(self._skipped[:5]) + (", ..." if len(self._skipped) > 5 else "")
            left_out = f"{len(self._skipped)} of {self._bounds[-1][1]} images"
            warnings.warn(f"left out {left_out} in epoch {sum(self._place)}, unusable: {named}", stacklevel=2)
            self._skipped = []


class _Fetching(Dataset[Fetched | ValueError]):
    """What runs in the workers; errors meant for the user come back as values, without a worker's traceback."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images

    def __getitem__(self, job: Job) -> Fetched | ValueError:
        try:
            return self.images.fetch(torch.tensor(job[0]), job[1])
        except (BadImageError, SampleError) as error:
            return error


def _as_it_is(fetched: Any) -> Any:
    return fetched
