"""Layers of two networks laid out alike: maps, tokens and vectors, at one size."""

from math import isqrt

import torch
import torch.nn.functional as F
from torch import Size, Tensor

__all__ = ["at_one_size", "is_aligned", "pooled", "positions"]


def is_aligned(student: Size, teacher: Size) -> bool:
    """Whether two layers can be compared entry by entry but for width and the size of maps; B does not matter."""
    if len(student) == 3:
        return len(teacher) == 3 and student[1] == teacher[1]
    return len(student) == len(teacher) and len(student) in (2, 4)


def positions(features: Tensor) -> Tensor:
    """Maps `(B, C, H, W)` as they are; tokens `(B, N, C)` as maps `(B, C, S, S)` of the largest square S.

    Tokens in front of the square, which are those of the class and registers, stand for no patch and are left out.

    Raises:
        ValueError: It is neither.
    """
    if features.ndim == 4:
        return features
    if features.ndim != 3:
        raise ValueError(
            f"a layer puts out {tuple(features.shape)}, which has no positions; name one that puts out maps "
            "(B, C, H, W) or tokens (B, N, C)."
        )
    side = isqrt(features.shape[1])
    return features[:, features.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))


def pooled(features: Tensor) -> Tensor:
    """An embedding `(B, C)` of each image, in at least float32: maps and tokens averaged over positions."""
    over = {3: [1], 4: [2, 3]}.get(features.ndim, [])
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return wide.mean(dim=over) if over else wide.flatten(1)


def at_one_size(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Maps `(..., H, W)`: whichever is higher or wider is averaged down to the other, so none is made up."""
    size = (min(ours.shape[-2], theirs.shape[-2]), min(ours.shape[-1], theirs.shape[-1]))
    ours, theirs = (it if it.shape[-2:] == size else F.adaptive_avg_pool2d(it, size) for it in (ours, theirs))
    return ours, theirs
