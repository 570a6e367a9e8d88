"""Precision, recall, density and coverage: whether made images lie where real ones do, and real ones where made do.

Letters: N real and M made images of D features; r_i the distance from an image to its k-th nearest of its own set.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Manifold", "manifold_scores", "radii"]


@dataclass(frozen=True)
class Manifold:
    """Four shares and a mean, see `manifold_scores`.

    Args:
        precision: Of made images, that lie within the radius of some real one.
        recall: Of real images, that lie within the radius of some made one.
        density: Mean number of real images, over k, within whose radius a made image lies; above 1 where made images
            crowd.
        coverage: Of real images, within whose own radius some made image lies.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def radii(features: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Distance from each row of `(N, D)` to its k-th nearest other row, `(N,)`; memory is `chunk * N` numbers."""
    # Not `kthvalue`, which sorts whole rows and has no deterministic way on GPUs.
    found = [torch.cdist(rows, features).topk(k + 1, dim=1, largest=False).values for rows in features.split(chunk)]
    return torch.cat(found)[:, -1]


def manifold_scores(real: Tensor, made: Tensor, k: int = 5, chunk: int = 1024) -> Manifold:
    """Compare two sets of features by the balls that reach to each image's k-th nearest of its own set.

    Args:
        real: `(N, D)`.
        made: `(M, D)`.
        k: Neighbours, below N and M.
        chunk: Rows that are compared at a time.

    Raises:
        ValueError: shapes do not fit, or k is not 1 to the smaller number less 1.

    Reference: Kynkaanniemi et al. 2019, arXiv:1904.06991; Naeem et al. 2020, arXiv:2002.09797, equations 1 to 5
    """
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features are {tuple(real.shape)} and {tuple(made.shape)}; give (N, D) and (M, D)")
    most = min(len(real), len(made)) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k is {k} and the smaller set has {most + 1} images; give 1 to {most}")
    reach_real, reach_made = radii(real, k, chunk), radii(made, k, chunk)
    reached = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(reached)
    within = real.new_zeros((), dtype=torch.int64)
    inside = torch.zeros_like(within)
    for rows, reach in zip(made.split(chunk), reach_made.split(chunk), strict=True):
        distance = torch.cdist(rows, real)
        near = distance <= reach_real
        within, inside = within + near.sum(), inside + near.any(1).sum()
        covered |= near.any(0)
        reached |= (distance <= reach[:, None]).any(0)
    return Manifold(
        precision=float(inside) / len(made),
        recall=float(reached.double().mean()),
        density=float(within) / (k * len(made)),
        coverage=float(covered.double().mean()),
    )
