"""Tiny data: images that a small network can tell apart, a loader that resumes and one that does not."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["ResumableLoader", "labelled_images", "plain_loader", "with_boxes"]


def labelled_images(count: int, seed: int = 0) -> TensorDataset:
    """`count` noisy images `(1, 8, 8)` whose mean brightness grows with their label 0..9."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(10, (count,), generator=generator)
    image = torch.randn(count, 1, 8, 8, generator=generator) + target[:, None, None, None] / 3
    return TensorDataset(image, target)


def with_boxes(samples: list[Any]) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A batch for detectors of samples of `labelled_images`: a box an image, the larger the higher its label, 1..10."""
    images, labels = zip(*samples, strict=True)
    targets = [
        {"boxes": torch.tensor([[1.0, 2.0, 3 + it / 2, 3 + it / 3]]), "labels": (it + 1).view(1)} for it in labels
    ]
    return torch.stack(images), targets


def plain_loader(count: int = 60, batch_size: int = 6, **options: Any) -> DataLoader[Any]:
    """An ordinary DataLoader over `labelled_images`; it cannot resume inside an epoch."""
    return DataLoader(labelled_images(count), batch_size=batch_size, **options)


class _Epoch:
    """What Lightning looks for to tell a loader which epoch comes."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class ResumableLoader:
    """Order is a function of (seed, epoch); the position, counted in batches handed out, is saved and restored.

    What a callback may ask of a loader, as of those of the datamodules: `visit` leaves samples out, `here` holds the
    positions of the latest batch.

    Args:
        data: anything indexable by position, whose items collate by default.
        batch_size: samples of one batch of this rank.
        rank: this shard.
        world_size: number of shards; samples rank, rank + world_size, ... of the epoch's order are this shard's.
        num_workers: worker processes.
        seed: fixes the order.
        collate_fn: makes a batch of a list of samples.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.data, self.batch_size, self.num_workers, self.seed = data, batch_size, num_workers, seed
        self.rank, self.world_size, self.collate_fn = rank, world_size, collate_fn
        self.sampler, self.batch_sampler = _Epoch(), None
        self.dataset, self.here = data, torch.empty(0, dtype=torch.int64)
        self.handed_out = 0
        self._skip = 0
        self._visited: tuple[Tensor, bool] | None = None

    def visit(self, positions: Tensor | None, ordered: bool = False) -> None:
        self._visited = None if positions is None else (positions, ordered)

    def __len__(self) -> int:
        count = len(self.data) if self._visited is None else len(self._visited[0])
        return -(-(count // self.world_size) // self.batch_size)

    def _batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.sampler.epoch)
        order = torch.randperm(len(self.data), generator=generator)
        if self._visited is not None:
            positions, ordered = self._visited
            order = positions if ordered else order[torch.isin(order, positions)]
        shard = order[self.rank : len(order) // self.world_size * self.world_size : self.world_size].tolist()
        return [shard[start : start + self.batch_size] for start in range(0, len(shard), self.batch_size)]

    def __iter__(self) -> Iterator[list[Tensor]]:
        # The epoch is known when the first batch is asked for, not when Lightning makes the iterator.
        self.handed_out, self._skip = self._skip, 0
        rest = self._batches()[self.handed_out :]
        loader = DataLoader(
            self.data,
            batch_sampler=rest,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            generator=torch.Generator().manual_seed(self.seed),
        )
        for positions, batch in zip(rest, loader, strict=True):
            self.handed_out += 1
            self.here = torch.tensor(positions)
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"handed_out": self.handed_out % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._skip = state["handed_out"]
