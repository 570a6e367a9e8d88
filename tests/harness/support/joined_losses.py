"""A loss over rows that two processes share unequally, beside the same loss of all rows in one process."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["ROWS", "alone", "on_a_rank"]

ROWS = (5, 3)
"""Rows of each rank."""


def on_a_rank(loss: Callable[[Tensor], Tensor], views: int, dim: int) -> tuple[Tensor, Tensor]:
    """The loss of this rank's rows, and the gradient of the weight behind them as DDP averages it."""
    import torch.distributed as dist

    begin = sum(ROWS[: dist.get_rank()])
    value, gradient = _of(loss, slice(begin, begin + ROWS[dist.get_rank()]), views, dim)
    dist.all_reduce(gradient)
    return value, gradient / dist.get_world_size()


def alone(loss: Callable[[Tensor], Tensor], views: int, dim: int) -> tuple[Tensor, Tensor]:
    """The same of all rows."""
    return _of(loss, slice(None), views, dim)


def _of(loss: Callable[[Tensor], Tensor], rows: slice, views: int, dim: int) -> tuple[Tensor, Any]:
    """`loss` takes embeddings `(views, B, dim)`, which a weight makes of numbers that are the same everywhere."""
    random = torch.Generator().manual_seed(0)
    batch = torch.randn(views, sum(ROWS), dim, generator=random, dtype=torch.float64)
    weight = torch.randn(dim, dim, generator=random, dtype=torch.float64).requires_grad_()
    value = loss(batch[:, rows] @ weight)
    value.backward()
    return value.detach(), weight.grad
