"""How much of a code is used."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ActiveUnits"]


class ActiveUnits(Metric):
    """How many numbers of a code vary with the image: those whose mean has a variance above a bound.

    A variational autoencoder gives numbers up that are worth less than the divergence they cost; their mean is then the
    same for all images.

    Args:
        shape: Of the code, without the batch.
        bound: Least variance over the images of an active number.
        **options: Of `torchmetrics.Metric`.

    Example:
        >>> metric = ActiveUnits((2,))
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        >>> metric.compute()
        tensor(1.)

    Reference: Burda et al. 2016, arXiv:1509.00519, section 5.2
    """

    full_state_update = False
    count: Tensor
    sums: Tensor
    squares: Tensor

    def __init__(self, shape: tuple[int, ...], bound: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.bound = bound
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("sums", torch.zeros(shape), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros(shape), dist_reduce_fx="sum")

    def update(self, mean: Tensor) -> None:
        """Count a batch.

        Args:
            mean: Of each image's code, `(B, ...)`.
        """
        rows = mean.detach().float()
        self.count += len(rows)
        self.sums += rows.sum(0)
        self.squares += rows.square().sum(0)

    def compute(self) -> Tensor:
        """The number of active ones, a float32 scalar."""
        variance = self.squares / self.count - (self.sums / self.count).square()
        return (variance > self.bound).sum().float()
