"""Frechet distance of two sets of features, taken for Gaussians.

Letters: N rows of D features; mu, S their mean and covariance.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "frechet_distance", "frechet_distance_of_features"]


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
        mean, centred = _centred(features)
        return cls(mean, centred.T @ centred, len(features))


def frechet_distance(first: Moments, second: Moments) -> Tensor:
    """|mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1 S_2)^(1/2)), a scalar of at least 0.

    The last trace is the sum of the square roots of the eigenvalues of L^T S_2 L, which is symmetric, where
    S_1 = L L^T: no root of a matrix that is not symmetric. L is Cholesky's, and where S_1 has no such factor, as of few
    images, that by its eigenvectors; no number has to be added.

    Args:
        first: Of D features.
        second: Of as many.

    Raises:
        ValueError: the numbers of features differ.

    Reference: Heusel et al. 2017, arXiv:1706.08500, equation 6
    """
    _compare(len(first.mean), len(second.mean))
    root, failed = torch.linalg.cholesky_ex(first.covariance)
    if failed:
        values, vectors = torch.linalg.eigh(first.covariance)
        root = vectors * values.clamp_min(0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ (second.covariance @ root)).clamp_min(0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    return (apart + first.covariance.trace() + second.covariance.trace() - 2 * cross).clamp_min(0)


def frechet_distance_of_features(first: Tensor, second: Tensor) -> Tensor:
    """`frechet_distance` of the moments of features `(N, D)` and `(M, D)`, a scalar.

    With A and B the centred features over the roots of N - 1 and M - 1, the trace of the root is the sum of the
    singular values of A B^T, which is smaller than the covariances where there are fewer images than features.

    Raises:
        ValueError: as `Moments.of` and `frechet_distance`.
    """
    _compare(first.shape[-1], second.shape[-1])
    if len(first) + len(second) > first.shape[-1]:
        return frechet_distance(Moments.of(first), Moments.of(second))
    (mean, one), (other_mean, other) = _centred(first), _centred(second)
    cross = torch.linalg.svdvals(one @ other.T).sum()
    spread = one.square().sum() + other.square().sum()
    return ((mean - other_mean).square().sum() + spread - 2 * cross).clamp_min(0)


def _centred(features: Tensor) -> tuple[Tensor, Tensor]:
    """The mean `(D,)`, and what is left of features `(N, D)` over the root of N - 1, float64."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"moments are of features (N, D) with N of at least 2, and got {tuple(features.shape)}")
    if not features.isfinite().all():
        raise ValueError("some features are not finite, so they have no mean; look at the network that made them")
    rows = features.double()
    mean = rows.mean(0)
    return mean, (rows - mean) / (len(rows) - 1) ** 0.5


def _compare(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"features have {first} and {second} numbers; compare those of one network")
