"""VICReg: two views agree, features keep varying, and features do not vary together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .gather import gather
from .heads import mlp
from .joint import JointEmbedding
from .off_diagonal import off_diagonal
from .views import View

__all__ = ["VICReg", "covariance_term", "variance_term", "vicreg_loss"]


def variance_term(embeddings: Tensor) -> Tensor:
    """How far standard deviations lie below 1 (equations 1 and 2): the mean over features of max(0, 1 - sigma).

    Args:
        embeddings: `(N, D)`; 0.0001 is added to each variance, that of a single row is 0.
    """
    variance = embeddings.var(dim=0, correction=min(1, len(embeddings) - 1))
    return F.relu(1 - (variance + 1e-4).sqrt()).mean()


def covariance_term(embeddings: Tensor) -> Tensor:
    """How much features vary together (equations 3 and 4): the squares of covariances, summed and divided by D.

    Args:
        embeddings: `(N, D)`; a single row has none.
    """
    centred = embeddings - embeddings.mean(dim=0)
    covariance = centred.T @ centred / max(1, len(embeddings) - 1)
    return off_diagonal(covariance).square().sum() / embeddings.shape[1]


def vicreg_loss(
    first: Tensor, second: Tensor, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> dict[str, Tensor]:
    """What two views cost together, over the rows of all processes: equation 6 as the authors compute it.

    They take the mean of both views' variance terms, not the sum, and the squared difference's mean over features.

    Args:
        first: Embeddings of one view of each image, `(B, D)`, on each process.
        second: Embeddings of the other view, in the same order.
        invariance_weight: lambda, of the mean squared difference.
        variance_weight: mu, of the mean of both views' `variance_term`.
        covariance_weight: nu, of the sum of both views' `covariance_term`.

    Returns:
        The terms `invariance`, `variance` and `covariance`, and their weighted sum `loss`.
    """
    both = [gather(embeddings) for embeddings in (first, second)]
    invariance = F.mse_loss(both[0], both[1])
    variance = (variance_term(both[0]) + variance_term(both[1])) / 2
    covariance = covariance_term(both[0]) + covariance_term(both[1])
    loss = invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance
    return {"loss": loss, "invariance": invariance, "variance": variance, "covariance": covariance}


class VICReg(JointEmbedding):
    """Makes embeddings of two views alike, keeps each feature varying over the batch, and features uncorrelated.

    Logs `loss` and its three terms before their weights. They are taken over the whole batch of all processes, so
    losses do not depend on how many share it; the head's batch norms see their own process's rows, unless the Trainer
    has `sync_batchnorm`.

    Args:
        invariance_weight: lambda, 0 or more.
        variance_weight: mu, 0 or more; with 0 all embeddings become one.
        covariance_weight: nu, 0 or more.
        hidden_dim: Width of the head's two inner layers.
        out_dim: Width of the embeddings that are compared.
        views: As `JointEmbedding`.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; `views` gives other than two views, a weight is negative, or the datamodule's
            batches are single images.

    Example:
        >>> import torch
        >>> learner = VICReg(backbone="resnet8_cifar", in_channels=1, views="digits", hidden_dim=64, out_dim=32)
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Bardes et al. 2022, arXiv:2105.04906

    BibTeX:
        @inproceedings{bardes2022vicreg,
          title = {{VICReg}: Variance-Invariance-Covariance Regularization for Self-Supervised Learning},
          author = {Bardes, Adrien and Ponce, Jean and LeCun, Yann},
          booktitle = {International Conference on Learning Representations},
          year = {2022},
        }
    """

    compared_views = 2

    def __init__(
        self,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        hidden_dim: int = 8192,
        out_dim: int = 8192,
        views: str | Sequence[View | Mapping[str, Any]] = "vicreg",
        **common: Any,
    ) -> None:
        super().__init__(views=views, **common)
        self.weights = (invariance_weight, variance_weight, covariance_weight)
        if min(self.weights) < 0:
            raise ValueError(f"the weights of VICReg's terms are {self.weights}; give 0 or more for each")
        self.network.add_module("projector", mlp([self.feature_dim, hidden_dim, hidden_dim, out_dim], last_bias=False))

    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        first, second = embeddings[0]
        return vicreg_loss(first, second, *self.weights)
