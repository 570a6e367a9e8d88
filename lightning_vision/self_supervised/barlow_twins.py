"""Barlow Twins: features of two views are to agree one by one, and to say different things."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .gather import gather
from .heads import mlp
from .joint import JointEmbedding
from .off_diagonal import off_diagonal
from .views import View

__all__ = ["BarlowTwins", "barlow_twins_loss", "cross_correlation"]


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """C (equation 2): how each feature of one view goes along with each of the other, over the rows of all processes.

    Args:
        first: Embeddings of one view of each image, `(B, D)`, on each process.
        second: Embeddings of the other view, in the same order.

    Returns:
        `(D, D)`, -1..1, the same on all processes; 0 where a feature does not vary.
    """
    one, other = (_standardised(gather(embeddings)) for embeddings in (first, second))
    return one.T @ other / len(one)


def barlow_twins_loss(first: Tensor, second: Tensor, redundancy_weight: float) -> dict[str, Tensor]:
    """How far the cross-correlation of two views is from the identity (equation 1).

    Args:
        first: Embeddings of one view of each image, `(B, D)`, on each process.
        second: Embeddings of the other view, in the same order.
        redundancy_weight: lambda, of what stands beside the diagonal.

    Returns:
        `invariance`, the sum of (1 - C_ii)^2, `redundancy`, the sum of all other C_ij^2, and their weighted sum `loss`.
    """
    matrix = cross_correlation(first, second)
    invariance = (1 - matrix.diagonal()).square().sum()
    redundancy = off_diagonal(matrix).square().sum()
    return {"loss": invariance + redundancy_weight * redundancy, "invariance": invariance, "redundancy": redundancy}


class BarlowTwins(JointEmbedding):
    r"""Makes each feature of two views of an image agree, and the features of a batch uncorrelated.

    Logs `loss`, `invariance` and `redundancy` (before its weight). Correlations are taken over the whole batch of all
    processes, so losses do not depend on how many share it; the head's batch norms see their own process's rows, unless
    the Trainer has `sync_batchnorm`.

    Args:
        redundancy_weight: lambda, the weight of correlations between features, 0 or more.
        hidden_dim: Width of the head's two inner layers.
        out_dim: Width of the embeddings that are compared.
        views: As `JointEmbedding`.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; `views` gives other than two views, `redundancy_weight` is negative, or the
            datamodule's batches are single images.

    Example:
        >>> import torch
        >>> learner = BarlowTwins(backbone="resnet8_cifar", in_channels=1, views="digits", hidden_dim=64, out_dim=32)
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Zbontar et al. 2021, arXiv:2103.03230

    BibTeX:
        @inproceedings{zbontar2021barlow,
          title = {Barlow Twins: Self-Supervised Learning via Redundancy Reduction},
          author = {Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, St\'ephane},
          booktitle = {International Conference on Machine Learning},
          pages = {12310--12320},
          year = {2021},
        }
    """

    compared_views = 2

    def __init__(
        self,
        redundancy_weight: float = 0.005,
        hidden_dim: int = 8192,
        out_dim: int = 8192,
        views: str | Sequence[View | Mapping[str, Any]] = "byol",
        **common: Any,
    ) -> None:
        super().__init__(views=views, **common)
        if redundancy_weight < 0:
            raise ValueError(f"redundancy_weight is {redundancy_weight}; give 0 or more")
        self.redundancy_weight = redundancy_weight
        self.network.add_module("projector", mlp([self.feature_dim, hidden_dim, hidden_dim, out_dim], last_bias=False))

    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        first, second = embeddings[0]
        return barlow_twins_loss(first, second, self.redundancy_weight)


def _standardised(rows: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over the batch; what a batch norm adds to the variance keeps constants finite."""
    centred = rows - rows.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + 1e-5).sqrt()
