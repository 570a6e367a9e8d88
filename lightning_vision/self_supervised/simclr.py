"""SimCLR: two views of an image are to be more alike than views of different images."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gather import gather, mean_of_all, own_rows
from .heads import mlp
from .joint import embed
from .key_queue import KeyQueue
from .momentum import MomentumLearner
from .momentum_copy import MomentumCopy

__all__ = ["SimCLR", "nt_xent"]


def nt_xent(first: Tensor, second: Tensor, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """The normalised temperature-scaled cross-entropy of two views (equation 1), over the rows of all processes.

    For each of the 2N embeddings: minus the log of exp(s / temperature) of its partner, over the sum of the same of all
    2N - 1 other embeddings and of the negatives, s the cosine; the mean of these.

    Args:
        first: Embeddings of one view of each image, `(B, D)`, on each process; not normalised.
        second: Embeddings of the other view, in the same order.
        temperature: Above 0.
        negatives: Unit vectors that every answer is also to be unlike, `(K, D)`, the same on all processes; no gradient
            goes there.

    Shape:
        A scalar, the same on all processes; 0 where there is one image and no negative.

    Reference: Chen et al. 2020, arXiv:2002.05709
    """
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    everyone = gather(torch.stack([first, second], dim=1))
    # Divided before the product and masked in place, for the matrix is the largest thing here.
    own, others = torch.cat([first, second]) / temperature, torch.cat(everyone.unbind(1))
    place = torch.arange(len(first), device=own.device) + own_rows(first).start
    itself = torch.cat([place, place + len(everyone)])
    partner = itself.roll(len(first))
    logits = (own @ others.T).scatter_(1, itself[:, None], float("-inf"))
    if negatives is not None:
        logits = torch.cat([logits, own @ negatives.detach().T], dim=1)
    return mean_of_all(F.cross_entropy(logits, partner, reduction="none"))


class SimCLR(MomentumLearner):
    """Tells the two views of an image from all views of other images in the batch.

    The whole batch of all processes contrasts, so losses do not depend on how many processes share it; batch norms do,
    unless `trainer.sync_batchnorm` is true, as the paper has it. With `memory` it is the second version's: earlier
    images as a slowly following branch embedded them are told from, too. `ProjectedBackbone` takes over layers of the
    head.

    Args:
        temperature: Divides cosines, above 0; the papers' are 0.1, and 0.5 on CIFAR-10.
        hidden_dim: Width of the head's inner layers; None is that of the features, as in the papers.
        out_dim: Width of the embeddings that are compared.
        head_layers: Layers of the head; 2 in the first version, 3 in the second.
        memory: How many embeddings of the following branch stay as further negatives; 0 is none, and no such branch.
        momentum: Share of that branch that stays at an optimizer step, 0..1.
        momentum_end: The same at the fit's end, reached along a cosine; None keeps `momentum`.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; `temperature` or `head_layers` is not positive, `memory` is negative, or the
            momentum lies outside 0..1.

    Example:
        >>> learner = SimCLR(backbone="resnet8_cifar", in_channels=1, views="digits")
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Chen et al. 2020, arXiv:2006.10029

    BibTeX:
        @inproceedings{chen2020big,
          title = {Big Self-Supervised Models are Strong Semi-Supervised Learners},
          author = {Chen, Ting and Kornblith, Simon and Swersky, Kevin and Norouzi, Mohammad and Hinton, Geoffrey},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2006.10029},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The head's last batch norm has neither scale nor shift. The memory keeps embeddings of both views.

    See also:
        `MoCo`, whose queries meet no other queries; `Distillation`, the third step of the second version.
    """

    compared_views = 2

    def __init__(
        self,
        temperature: float = 0.1,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        head_layers: int = 3,
        memory: int = 0,
        momentum: float = 0.999,
        momentum_end: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(momentum=momentum, momentum_end=momentum_end, **common)
        for name, value in (("temperature", temperature), ("head_layers", head_layers)):
            if value <= 0:
                raise ValueError(f"{name} is {value}; give a number above 0")
        if memory < 0:
            raise ValueError(f"memory is {memory}; give the number of embeddings that stay, or 0 for none")
        self.temperature = temperature
        self.network.add_module("projector", simclr_head(self.feature_dim, hidden_dim, out_dim, head_layers))
        if memory:
            self.target, self.queue = MomentumCopy(self.source), KeyQueue(memory, out_dim)

    def embeddings(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        own = super().embeddings(views)
        return own if self.queue is None else (*own, embed(self.target, views))

    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        (first, second), *remembered = embeddings
        negatives = None
        if self.queue is not None:
            negatives = self.queue.stored()
            self.collect(torch.cat(remembered[0]))
        return {"loss": nt_xent(first, second, self.temperature, negatives)}

    def follow(self, step: int) -> None:
        if self.queue is not None:
            super().follow(step)


def simclr_head(in_dim: int, hidden_dim: int | None, out_dim: int, layers: int) -> nn.Sequential:
    """The projection head, each of whose layers has a batch norm, and all but the last a ReLU."""
    return mlp([in_dim, *[hidden_dim or in_dim] * (layers - 1), out_dim], last_norm=True)
