"""Frechet distance of two sets of features, taken for Gaussians.

Letters: N rows of D features; mu, S their mean and covariance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance"]


@dataclass(frozen=True)
class Moments:
    """Mean `(D,)`, covariance `(D, D)` and number of features, float64; those of reference images can be kept.

    Args:
        mean: mu.
        covariance: S, with N - 1 below the line.
        count: N.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Those of features `(N, D)`.

        Raises:
            ValueError: there are fewer than two rows, or a number is not finite.
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"moments are of features (N, D) with N of at least 2, and got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("some features are not finite, so they have no mean; look at the network that made them")
        rows = features.double()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1), len(rows))


def frechet_distance(first: Moments, second: Moments) -> Tensor:
    """|mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2)), a scalar of at least 0.

    The last trace is the sum of the square roots of the eigenvalues of L^T S_2 L, which is symmetric, where S_1 = L L^T
    by its own eigenvectors: no root of a matrix that is not symmetric, and covariances of few images, which have
    eigenvalues of 0, need no number added.

    Args:
        first: Of D features.
        second: Of as many.

    Raises:
        ValueError: the numbers of features differ.

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6
    """
    if first.mean.shape != second.mean.shape:
        sizes = f"{len(first.mean)} and {len(second.mean)}"
        raise ValueError(f"features have {sizes} numbers; compare those of one network")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp_min(0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ second.covariance @ root).clamp_min(0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return (apart + first.covariance.trace() + second.covariance.trace() - 2 * cross).clamp_min(0)
