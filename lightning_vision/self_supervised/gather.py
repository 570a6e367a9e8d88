"""Rows of all processes, with gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather, all_reduce

__all__ = ["apart", "gather", "mean_of_all", "own_rows", "quotient_of_all"]

_apart = ContextVar("apart", default=False)


@contextmanager
def apart() -> Iterator[None]:
    """Inside, a process asks no other: in evaluation they may have different numbers of batches, and would wait."""
    before = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(before)


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes, `(N, ...)`, in the order of ranks; without other processes the rows themselves.

    Numbers of rows may differ. The backward pass adds what all processes ask of a row, so a loss that each process
    computes of all rows, averaged as DDP averages gradients, has the gradient of one process with the whole batch.

    Args:
        rows: This process's, `(B, ...)`.
    """
    if _alone():
        return rows
    counts = _counts(rows)
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(counts) - len(rows)))
    parts = all_gather(padded.contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def own_rows(rows: Tensor) -> slice:
    """Where this process's rows stand in what `gather` gives."""
    if _alone():
        return slice(0, len(rows))
    counts, rank = _counts(rows), dist.get_rank()
    begin = sum(counts[:rank])
    return slice(begin, begin + len(rows))


def mean_of_all(values: Tensor) -> Tensor:
    """The mean of the values of all processes, a scalar that is the same on each, whatever their numbers.

    Averaged as DDP averages gradients, what the processes' own values ask for is the gradient of that mean.

    Args:
        values: One a row of this process's, `(B,)`; at least one.
    """
    return quotient_of_all(values.sum(), values.new_tensor(len(values)))


def quotient_of_all(part: Tensor, count: Tensor) -> Tensor:
    """The sum of all processes' `part` over that of their `count`, scalars; with gradients as `mean_of_all`."""
    if _alone():
        return part / count
    total: Tensor = all_reduce(torch.stack([part, count.to(part.dtype)]))
    return total[0] / total[1]


def _alone() -> bool:
    return _apart.get() or not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def _counts(rows: Tensor) -> list[int]:
    counts = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    return [int(count) for count in counts]
