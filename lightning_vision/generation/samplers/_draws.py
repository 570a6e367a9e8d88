"""Fresh noise."""

import torch
from torch import Generator, Tensor

__all__ = ["normal_like"]


def normal_like(x: Tensor, random: Generator | None) -> Tensor:
    """Standard normal numbers of x's shape, kind and device."""
    return torch.randn(x.shape, generator=random, device=x.device, dtype=x.dtype)
