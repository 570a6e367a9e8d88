"""GeodesicMix: train at the worst point of the Wasserstein geodesic between two classes of the batch.

Zhu, Qiu, Guha, Yang, Nguyen, Li and Zhao 2023, arXiv:2302.02092. Symbols: T the optimal matching of the samples of two
classes, `partner`; s the point on the geodesic between them, 0 at one's own class; letters: B samples of the
micro-batch, n and m samples of two classes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from ..hooks._checks import number, whole
from ..hooks.searching import Searching
from ..hooks.targets import Mix
from .mixup import mixup_images

__all__ = [
    "GeodesicMix",
    "GeodesicMixDraw",
    "Matching",
    "geodesic_images",
    "geodesic_partner",
    "optimal_matching",
    "smoothness",
]


@dataclass(frozen=True)
class Matching:
    """Samples of two sets, each of the smaller set matched with one of the larger, such that the cost is least.

    Args:
        first: int64 `(min(n, m),)`, positions in the first set, ascending.
        second: int64 `(min(n, m),)`, those in the second set that they are matched with.
        cost: Mean squared distance of the matched ones; of sets of one size the squared Wasserstein distance.
    """

    first: Tensor
    second: Tensor
    cost: float


def optimal_matching(first: Tensor, second: Tensor) -> Matching:
    """The optimal transport between two sets of features as a matching (scipy's `linear_sum_assignment`).

    The cost is the squared Euclidean distance. Of sets of different sizes each sample of the smaller one is matched,
    and the rest of the larger one is left over.

    Args:
        first: Float `(n, D)`.
        second: Float `(m, D)`.
    """
    # Here, for scipy takes a while to import.
    from scipy.optimize import linear_sum_assignment

    distances = torch.cdist(first.double(), second.double(), compute_mode="use_mm_for_euclid_dist").square()
    costs = distances.cpu().numpy()
    rows, columns = linear_sum_assignment(costs)
    return Matching(torch.from_numpy(rows), torch.from_numpy(columns), float(costs[rows, columns].mean()))


def geodesic_partner(features: Tensor, labels: Tensor, order: Tensor) -> Tensor:
    """The partner of each sample: the one that it is matched with in the class that its class is paired with.

    Classes are ordered by their first sample in `order`; the first is paired with the second, the third with the
    fourth, and so on. A sample that is left over, or whose class is, has itself.

    Args:
        features: Float `(B, D)`.
        labels: int64 `(B,)` on the CPU.
        order: int64 `(B,)` on the CPU, a permutation.

    Returns:
        int64 `(B,)` on the CPU, a permutation that is its own inverse.
    """
    partner = torch.arange(len(labels))
    classes = list(dict.fromkeys(labels[order].tolist()))
    for one, other in zip(classes[::2], classes[1::2], strict=False):
        first, second = ((labels == it).nonzero().flatten() for it in (one, other))
        matching = optimal_matching(*(features[it.to(features.device)] for it in (first, second)))
        partner[first[matching.first]] = second[matching.second]
        partner[second[matching.second]] = first[matching.first]
    return partner


def geodesic_images(images: Tensor, partner: Tensor, s: float) -> Tensor:
    """Images on the way to their partners: `(1 - s) images + s images[partner]`.

    At 0 they are the images and at 1 the partners', bit for bit.

    Args:
        images: `(B, ...)`, floating point; left unchanged.
        partner: int64 `(B,)`.
        s: Point on the way, 0 to 1.
    """
    return mixup_images(images, partner, 1 - s, owner="GeodesicMix")


def smoothness(loss: Tensor, beside: Tensor, distance: float) -> Tensor:
    """How fast the loss changes between two points of the geodesic, `|beside - loss| / distance`."""
    return (beside - loss).abs() / distance


@dataclass(frozen=True)
class GeodesicMixDraw:
    """All random choices that GeodesicMix makes for a batch.

    Args:
        order: int64 `(B,)`, a permutation, by which classes are paired.
    """

    order: Tensor


@final
class GeodesicMix(Searching):
    """Trains at the worst point of the Wasserstein geodesic between two classes, and for a loss that is smooth on it.

    In each training micro-batch the classes are paired at random and the samples of each pair matched by optimal
    transport, so that they move least. On the way from each to its match lies the geodesic between the two classes;
    labels are mixed by how far it is gone. The module's loss is computed at `n_geodesic` points of it without a trace,
    and the batch is trained on at the one where it is highest; how fast the loss changes from there to the next point,
    from the last to the one before, may be added to it. Integer labels stay integers, so metrics count the own label.
    Samples without a match are left as they are. Validation, test and prediction stay untouched.

    Args:
        n_geodesic: Points at which the loss is computed, >= 1; evenly from the first of `s_range` to the last.
        s_range: Where the points lie on the way, 0 (the sample itself) to 1 (its match); first below last. As both of
            a pair move, the way beyond the middle is the other's.
        reg_weight: What the change of the loss along the geodesic is multiplied by when it is added to the loss, >= 0;
            0 leaves it out. Needs two points.
        features: By what samples are compared: None for their pixels; the path of a checkpoint (`*.ckpt`); or a network
            `(B, C, H, W)` to `(B, D)`.
        prob: Probability that a batch is mixed, 0 to 1. Neutral: 0.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" keeps a label with probability 1 - s and takes the match's
            otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point; labels int64 `(B,)`.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss, or the batch once it was searched; the
            number of classes is unknown; the module optimises manually; the features cannot be had; at the first step,
            images that are not floating point, labels that are no classes, as -100, a step without a loss, or a loss
            that cannot be seen.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[0.0], [9.0], [8.0], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> geodesic_partner(features, labels, torch.arange(4))
        tensor([3, 2, 1, 0])

    Reference: Zhu et al. 2023, arXiv:2302.02092

    BibTeX:
        @inproceedings{zhu2023geodesic,
          title = {Interpolation for Robust Learning: Data Augmentation on {W}asserstein Geodesics},
          author = {Zhu, Jiacheng and Qiu, Jielin and Guha, Aritra and Yang, Zhuolin and Nguyen, XuanLong and Li, Bo and
            Zhao, Ding},
          booktitle = {International Conference on Machine Learning},
          year = {2023},
        }

    Differs from the paper:
        Built from its abstract: worst-case points of the geodesic between classes and a regulariser for smooth
        performance on it. Transport is between the samples that a batch has of two classes, by an exact matching; of
        classes of different sizes the surplus is left as it is, where a transport of mass would split samples. One
        point is chosen for all pairs of a batch, on a grid. Both samples of a pair move towards each other, so a batch
        keeps its size. The regulariser is the slope of the loss between the chosen point and the next of the grid, of
        the last and the one before.

    See also:
        `MixUp`, whose partners and shares are random.
    """

    neutral = ({"prob": 0.0},)

    def __init__(
        self,
        n_geodesic: int = 5,
        s_range: tuple[float, float] = (0.0, 0.5),
        reg_weight: float = 0.1,
        features: nn.Module | str | None = None,
        prob: float = 1.0,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            reg_weight=reg_weight,
            features=features,
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        whole("GeodesicMix", "n_geodesic", n_geodesic, 1)
        if not isinstance(s_range, (list, tuple)) or len(s_range) != 2:
            raise ValueError(f"GeodesicMix: s_range is {s_range!r}; give its two ends, such as [0.0, 0.5].")
        for end in s_range:
            number("GeodesicMix", "an end of s_range", end, 0, 1)
        if n_geodesic > 1 and s_range[0] >= s_range[1]:
            raise ValueError(
                f"GeodesicMix: s_range runs from {s_range[0]} to {s_range[1]}; give a first end below the last."
            )
        if reg_weight and n_geodesic == 1:
            raise ValueError(
                f"GeodesicMix: reg_weight is {reg_weight} and along one point nothing changes; give n_geodesic=2 or "
                "more, or reg_weight=0."
            )
        self.n_geodesic, self.s_range = n_geodesic, (float(s_range[0]), float(s_range[1]))

    @property
    def points(self) -> Sequence[float]:
        return [float(it) for it in np.linspace(*self.s_range, self.n_geodesic)]

    def draw(self, shape: torch.Size, random: np.random.Generator) -> GeodesicMixDraw:
        return GeodesicMixDraw(torch.from_numpy(random.permutation(shape[0])))

    def partners(self, images: Tensor, labels: Tensor, draw: GeodesicMixDraw) -> Tensor:
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"GeodesicMix: it matches classes, and the labels are {str(labels.dtype).removeprefix('torch.')} "
                f"{tuple(labels.shape)}; give integers (B,), or take MixUp."
            )
        labels = labels.cpu()
        if (low := int(labels.min())) < 0:
            raise ValueError(
                f"GeodesicMix: a label is {low}, which is no class, and it matches classes; leave samples without one "
                "out of the training set, or take MixUp."
            )
        return geodesic_partner(self.features_of(images), labels, draw.order).to(images.device)

    def at(self, images: Tensor, partner: Tensor, point: float) -> Mix:
        return Mix(geodesic_images(images, partner, point), partner, 1 - point)

    def change_between(self, loss: Tensor, beside: Tensor, distance: float) -> Tensor:
        return smoothness(loss, beside, distance)
