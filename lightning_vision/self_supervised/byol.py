"""BYOL: what a network makes of one view foretells what a slowly following copy makes of the other."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .gather import mean_of_all
from .heads import mlp
from .joint import embed
from .momentum import MomentumLearner
from .momentum_copy import MomentumCopy
from .views import View

__all__ = ["BYOL", "byol_loss"]


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, the mean over the rows of all processes (equation 2).

    Args:
        predictions: `(B, D)`, on each process; not normalised.
        targets: `(B, D)`, what they foretell; not normalised, and no gradient goes there.

    Shape:
        A scalar in 0..4, the same on all processes.

    Reference: Grill et al. 2020, arXiv:2006.07733
    """
    return mean_of_all(2 - 2 * F.cosine_similarity(predictions, targets.detach(), dim=1))


class BYOL(MomentumLearner):
    """Foretells, from one view, the answer of a slowly following copy to the other view; images meet no other images.

    Both views foretell each other. Nothing in the loss keeps embeddings apart: that predictor, copy and batch norms do
    it is what the paper shows. Batch norms take their statistics of one process unless `trainer.sync_batchnorm` is
    true, as the paper has it.

    Args:
        hidden_dim: Width of the inner layer of projector and predictor.
        out_dim: Width of what is foretold.
        momentum: tau, the share of the copy that stays at an optimizer step, 0..1, at the fit's start; the authors have
            0.996 in 1,000 epochs and 0.99 in 300. 1 leaves the copy where it starts.
        momentum_end: tau at the fit's end, reached along a cosine; None keeps `momentum`.
        views: Two views, as `JointEmbedding` takes them.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; the momentum lies outside 0..1.

    Example:
        >>> learner = BYOL(backbone="resnet8_cifar", in_channels=1, views="digits")
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Grill et al. 2020, arXiv:2006.07733

    BibTeX:
        @inproceedings{grill2020byol,
          title = {Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning},
          author = {Grill, Jean-Bastien and Strub, Florian and Altch{\\'e}, Florent and Tallec, Corentin and Richemond,
                    Pierre H. and Buchatskaya, Elena and Doersch, Carl and Pires, Bernardo Avila and Guo, Zhaohan Daniel
                    and Azar, Mohammad Gheshlaghi and Piot, Bilal and Kavukcuoglu, Koray and Munos, R{\\'e}mi and Valko,
                    Michal},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2006.07733},
          archivePrefix = {arXiv},
        }

    See also:
        `MoCo`, whose copy gives other images' embeddings too.
    """

    compared_views = 2

    def __init__(
        self,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        momentum: float = 0.996,
        momentum_end: float | None = 1.0,
        views: str | Sequence[View | Mapping[str, Any]] = "byol",
        **common: Any,
    ) -> None:
        super().__init__(momentum=momentum, momentum_end=momentum_end, views=views, **common)
        self.network.add_module("projector", mlp([self.feature_dim, hidden_dim, out_dim]))
        self.network.add_module("predictor", mlp([out_dim, hidden_dim, out_dim]))
        self.target = MomentumCopy(self.source)

    def embeddings(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        return embed(self.network, views), embed(self.target, views)

    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        predictions, targets = embeddings
        first, second = (byol_loss(*pair) for pair in zip(predictions, reversed(targets), strict=True))
        return {"loss": first + second}
