"""MoCo: a view of an image is to find its other view among the embeddings of a slowly following branch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gather import gather, mean_of_all, own_rows
from .heads import mlp
from .joint import embed
from .key_queue import KeyQueue
from .momentum import MomentumLearner
from .momentum_copy import MomentumCopy
from .views import View

__all__ = ["MoCo", "info_nce_batch", "info_nce_queue"]


def info_nce_queue(queries: Tensor, keys: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """The loss of versions 1 and 2: each query is to find its key among keys of earlier batches (their equation 1).

    With s the cosine, minus the log of exp(s / temperature) of a query and its key, over the sum of the same of the
    query with its key and with all negatives; the mean over queries.

    Args:
        queries: `(B, D)`, on each process; not normalised.
        keys: `(B, D)`, the key of each query; not normalised, and no gradient goes there.
        negatives: Unit vectors `(K, D)`, the same on all processes; no gradient goes there. K may be 0.
        temperature: Above 0.

    Shape:
        A scalar, the same on all processes; 0 where there are no negatives.

    Reference: He et al. 2020, arXiv:1911.05722
    """
    queries, keys = F.normalize(queries, dim=1) / temperature, F.normalize(keys.detach(), dim=1)
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ negatives.detach().T], dim=1)
    return mean_of_all(F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="none"))


def info_nce_batch(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """The loss of version 3: each query is to find its key among those of the batch of all processes (its equation 1).

    As `info_nce_queue`, with the other images' keys as negatives, times 2 temperature.

    Args:
        queries: `(B, D)`, on each process; not normalised.
        keys: `(B, D)`, the key of each query; not normalised, and no gradient goes there.
        temperature: Above 0.

    Shape:
        A scalar, the same on all processes; 0 where there is one image.

    Reference: Chen et al. 2021, arXiv:2104.02057
    """
    queries, keys = F.normalize(queries, dim=1) / temperature, F.normalize(keys.detach(), dim=1)
    own = torch.arange(len(keys), device=keys.device) + own_rows(keys).start
    logits = queries @ gather(keys).T
    return 2 * temperature * mean_of_all(F.cross_entropy(logits, own, reduction="none"))


class MoCo(MomentumLearner):
    """Lets a view find its image's other view among embeddings of a branch that follows by a momentum.

    With a queue it is version 2: one view asks, the other one and a queue of earlier embeddings are what it finds.
    Without (`queue_size=0`) it is version 3: both views ask, through a predictor, and find among the whole batch.
    Its authors' `momentum` is then 0.99 with a `momentum_end` of 1, `hidden_dim` 4096, `out_dim` 256 and `temperature`
    1 with a ResNet, 0.2 with a ViT.

    Args:
        queue_size: How many earlier embeddings a query is told from; 0 is version 3.
        temperature: Divides cosines, above 0.
        hidden_dim: Width of the heads' inner layers.
        out_dim: Width of the embeddings that are compared.
        momentum: Share of the following branch that stays at an optimizer step, 0..1.
        momentum_end: The same at the fit's end, reached along a cosine; None keeps `momentum`.
        views: Two views, as `JointEmbedding` takes them.
        **common: As `JointEmbedding`.

    Raises:
        ValueError: as `JointEmbedding`; `temperature` is not positive, `queue_size` is negative, or the momentum lies
            outside 0..1.

    Example:
        >>> learner = MoCo(queue_size=256, backbone="resnet8_cifar", in_channels=1, views="digits")
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 64])

    Reference: Chen et al. 2020, arXiv:2003.04297; Chen et al. 2021, arXiv:2104.02057

    BibTeX:
        @misc{chen2020mocov2,
          title = {Improved Baselines with Momentum Contrastive Learning},
          author = {Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming},
          year = {2020},
          eprint = {2003.04297},
          archivePrefix = {arXiv},
        }
        @inproceedings{chen2021mocov3,
          title = {An Empirical Study of Training Self-Supervised Vision Transformers},
          author = {Chen, Xinlei and Xie, Saining and He, Kaiming},
          booktitle = {International Conference on Computer Vision},
          pages = {9640--9649},
          year = {2021},
          eprint = {2104.02057},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The queue starts empty and not with random vectors. Batches are not shuffled between processes before the
        following branch sees them, so batch norms may tell partners from the queue's keys, which other batches
        normalised; `trainer.sync_batchnorm` only leaves them no smaller group. Version 3 has the heads of its ViTs,
        also behind other backbones, and trains a ViT's first layer like the others.

    See also:
        `SimCLR`, whose views of one batch meet without a second branch.
    """

    compared_views = 2

    def __init__(
        self,
        queue_size: int = 65536,
        temperature: float = 0.2,
        hidden_dim: int = 2048,
        out_dim: int = 128,
        momentum: float = 0.999,
        momentum_end: float | None = None,
        views: str | Sequence[View | Mapping[str, Any]] = "moco_v2",
        **common: Any,
    ) -> None:
        super().__init__(momentum=momentum, momentum_end=momentum_end, views=views, **common)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; give a number above 0")
        if queue_size < 0:
            raise ValueError(f"queue_size is {queue_size}; give the number of embeddings that stay, or 0 for version 3")
        self.temperature = temperature
        if queue_size:
            head, self.queue = mlp([self.feature_dim, hidden_dim, out_dim], norm=False), KeyQueue(queue_size, out_dim)
        else:
            head = mlp([self.feature_dim, hidden_dim, hidden_dim, out_dim], last_norm=True)
        self.network.add_module("projector", head)
        if not queue_size:
            self.network.add_module("predictor", mlp([out_dim, hidden_dim, out_dim], last_norm=True))
        self.target = MomentumCopy(self.source)

    def embeddings(self, views: list[Tensor]) -> tuple[list[Tensor], ...]:
        if self.queue is None:
            return embed(self.network, views), embed(self.target, views)
        return [self.network(views[0])], [self.target(views[1])]

    def compare(self, *embeddings: list[Tensor]) -> dict[str, Tensor]:
        queries, keys = embeddings
        if self.queue is None:
            # Each view asks for the other one.
            both = zip(queries, reversed(keys), strict=True)
            first, second = (info_nce_batch(*pair, self.temperature) for pair in both)
            return {"loss": first + second}
        self.collect(keys[0])
        return {"loss": info_nce_queue(queries[0], keys[0], self.queue.stored(), self.temperature)}
