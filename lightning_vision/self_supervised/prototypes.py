"""A last layer whose rows have length one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Prototypes"]


class Prototypes(nn.Module):
    """Cosines of outputs with K directions that are learned: a linear layer without bias, its rows normalised.

    Args:
        dim: D.
        count: K.
        learned_lengths: Whether each direction has a length that is learned too, 1 at the start; a weight-normalised
            layer whose lengths are free.

    Shape:
        `(B, D)` to `(B, K)`; without learned lengths in -1..1.

    Reference: Salimans and Kingma 2016, arXiv:1602.07868, equation 2; Caron et al. 2021, arXiv:2104.14294, section 3.1
    """

    def __init__(self, dim: int, count: int, learned_lengths: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))
        self.lengths = nn.Parameter(torch.ones(count)) if learned_lengths else None

    def forward(self, outputs: Tensor) -> Tensor:
        cosines = F.linear(F.normalize(outputs, dim=1), F.normalize(self.weight, dim=1))
        return cosines if self.lengths is None else cosines * self.lengths
