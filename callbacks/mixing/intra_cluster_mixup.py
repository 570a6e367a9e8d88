"""Intra-Cluster Mixup: MixUp whose partners are drawn from the same cluster of features, for complementary labels.

Mai and Lin 2025, arXiv:2509.17971. Symbols: lambda `lam`, the share of the own image; alpha `alpha`; x_j
`images[partner]`; letters: B samples of the micro-batch, N training images, D features, K clusters.
"""

from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from ..hooks._checks import flag, number, whole
from ..hooks.prepared import Prepared
from ..hooks.targets import Mix
from .mixup import MixUpDraw, mixup_images

__all__ = ["IntraClusterMixup", "cluster_centroids", "intra_cluster_partner", "nearest_centroid"]


def cluster_centroids(features: Tensor, n_clusters: int, seed: int = 0) -> Tensor:
    """Centroids of k-means, the best of ten starts of k-means++ (scikit-learn's `KMeans`).

    Args:
        features: Float `(N, D)` on the CPU.
        n_clusters: K, 1 to N.
        seed: Of the starts.

    Returns:
        Float32 `(K, D)`.

    Raises:
        ValueError: there are fewer than K features.
    """
    # Here, for scikit-learn takes a while to import.
    from sklearn.cluster import KMeans

    if n_clusters > len(features):
        raise ValueError(
            f"IntraClusterMixup: n_clusters is {n_clusters} and {len(features)} training images were read; give at "
            "most as many, or raise max_samples."
        )
    # In double precision the mean of a cluster of equal rows is that row.
    means = KMeans(n_clusters, n_init=10, random_state=seed).fit(features.double().numpy()).cluster_centers_
    return torch.from_numpy(means).float()


def nearest_centroid(features: Tensor, centroids: Tensor) -> Tensor:
    """The cluster of each sample: that of the nearest centroid by Euclidean distance, of equally near ones the first.

    Args:
        features: Float `(B, D)`.
        centroids: Float `(K, D)` on the same device.

    Returns:
        int64 `(B,)` in 0..K-1.
    """
    distances = torch.cdist(features, centroids, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.argmin(1)


def intra_cluster_partner(order: Tensor, clusters: Tensor) -> Tensor:
    """A permutation of the batch, restricted to its clusters.

    The samples of each cluster, in the order of the batch, are given those of the same cluster in the order of the
    permutation. So with one cluster it is the permutation itself, a sample that is alone in its cluster has itself for
    a partner, and a permutation drawn uniformly is uniform in each cluster.

    Args:
        order: int64 `(B,)`, a permutation.
        clusters: int64 `(B,)` on the same device.

    Returns:
        int64 `(B,)`, a permutation.
    """
    partner = torch.empty_like(order)
    # Both lists of places are sorted by cluster, so they meet cluster by cluster.
    partner[clusters.argsort(stable=True)] = order[clusters[order].argsort(stable=True)]
    return partner


@final
class IntraClusterMixup(Prepared):
    """MixUp between images of the same cluster only, which keeps complementary labels true.

    A complementary label names a class that an image does *not* show. MixUp of two images at random often pairs an
    image with the complementary label that is its true class; neighbours in feature space mostly share their class, so
    among them that is rare. Before the first step features of the training images, without augmentation, are clustered
    by k-means; each training micro-batch is then assigned to the nearest centroids by its own features and mixed within
    its clusters, once, on the device, before `training_step` and all that replays it. A sample without a cluster mate
    in the batch is left as it is. Integer labels stay integers; the loss computed from them, a complementary one such
    as `ComplementaryNegativeLog` or any other, becomes `lam L(own) + (1 - lam) L(partner's)`. Validation, test and
    prediction stay untouched.

    Args:
        alpha: Both parameters of the Beta distribution of lambda, >= 0. Neutral: 0.
        n_clusters: Clusters of the training images, >= 1; 1 is plain `MixUp`, as many as there are images is none.
        features: What images are compared by: None for their pixels; the path of a checkpoint (`*.ckpt`), such as that
            of a self-supervised learner, as the paper has it; or a network `(B, C, H, W)` to `(B, D)`.
        centroids: Centroids that are known already, K rows of D numbers; then nothing is read or clustered.
        max_samples: Training images that are read for the clusters at most, over all processes, whatever
            `limit_train_batches` and `fast_dev_run` say; None takes all.
        prob: Probability that a batch is mixed, 0 to 1. Neutral: 0.
        per_sample: Draw a lambda for each sample, not one for the batch.
        targets: "loss" mixes the loss; "soft" puts probabilities `(B, num_classes)` in the place of the labels,
            also where a batch is not mixed; "sampled" keeps a label with probability lambda and takes the partner's
            otherwise.
        num_classes: Classes of `targets="soft"`; None asks the module, then the datamodule.
        seed: Seed of the callback's own random stream and of k-means, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        images `(B, C, H, W)`, floating point; labels int64 `(B,)`, or any whose loss torch computes.

    Raises:
        ValueError: a setting outside its range; another callback mixes the loss; the number of classes is unknown; the
            features cannot be had or share weights with the module; before the first step, fewer training images than
            clusters, or none; at the first step, images that are not floating point, features of another width than the
            centroids, or a loss that cannot be seen.

    Example:
        >>> import torch
        >>> intra_cluster_partner(torch.tensor([3, 2, 1, 0, 4]), torch.tensor([0, 0, 1, 1, 2]))
        tensor([1, 0, 3, 2, 4])

    Reference: Mai and Lin 2025, arXiv:2509.17971

    BibTeX:
        @article{mai2026icm,
          title = {Intra-Cluster Mixup: An Effective Data Augmentation Technique for Complementary-Label Learning},
          author = {Mai, Tan-Ha and Lin, Hsuan-Tien},
          journal = {Transactions on Machine Learning Research},
          year = {2026},
          eprint = {2509.17971},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Clusters are nearest centroids of a batch's features, which needs no numbers of samples from the data; the
        paper clusters the training set and mixes by membership, which for images without augmentation is the same.
        Partners come from the batch. Features are whatever is given, by default pixels; the paper's come from SimSiam.
        The defaults of `alpha` and `n_clusters` are ours. Its variant for several clusters (MICM) is left out.
        `per_sample`, "soft" and "sampled" are additions.

    See also:
        `MixUp`, whose partners are any; `ComplementaryNegativeLog`, `ComplementaryForward`, losses for such labels.
    """

    neutral = ({"alpha": 0.0}, {"prob": 0.0})

    def __init__(
        self,
        alpha: float = 1.0,
        n_clusters: int = 10,
        features: nn.Module | str | None = None,
        centroids: Sequence[Sequence[float]] | None = None,
        max_samples: int | None = 10_000,
        prob: float = 1.0,
        per_sample: bool = False,
        targets: Literal["loss", "soft", "sampled"] = "loss",
        num_classes: int | None = None,
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            features=features,
            max_samples=max_samples,
            prob=prob,
            targets=targets,
            num_classes=num_classes,
            seed=seed,
            image_key=image_key,
            target_key=target_key,
            name=name,
        )
        number("IntraClusterMixup", "alpha", alpha, 0)
        whole("IntraClusterMixup", "n_clusters", n_clusters, 1)
        flag("IntraClusterMixup", "per_sample", per_sample)
        self.alpha, self.n_clusters, self.per_sample, self.centroids = alpha, n_clusters, per_sample, centroids
        self._given = None if centroids is None else _as_rows(centroids)

    def given(self) -> Tensor | None:
        return self._given

    def prepare(self, features: Tensor) -> Tensor:
        return cluster_centroids(features, self.n_clusters, self.seed)

    def draw(self, shape: torch.Size, random: np.random.Generator) -> MixUpDraw:
        order = torch.from_numpy(random.permutation(shape[0]))
        lam = random.beta(self.alpha, self.alpha, shape[0] if self.per_sample else 1)
        return MixUpDraw(order, torch.from_numpy(lam))

    def mix(self, images: Tensor, draw: MixUpDraw) -> Mix:
        """Mix as `draw` says, its `partner` being a permutation that is restricted to the clusters."""
        assert self.prepared is not None
        features, centroids = self.features_of(images), self.prepared
        if features.shape[1] != centroids.shape[1]:
            raise ValueError(
                f"IntraClusterMixup: images of this batch have {features.shape[1]} features and the centroids "
                f"{centroids.shape[1]}; give features of one width, as a network that pools makes them, or images of "
                "one size."
            )
        partner = intra_cluster_partner(draw.partner.to(images.device), nearest_centroid(features, centroids))
        if len(draw.lam) == 1:
            lam = float(draw.lam)
            return Mix(mixup_images(images, partner, lam, self.blocks, "IntraClusterMixup"), partner, lam)
        # Rounded to the images' dtype first, so that images and labels are mixed in the same shares.
        shares = draw.lam.to(images.dtype).to(images.device, non_blocking=True)
        return Mix(mixup_images(images, partner, shares, self.blocks, "IntraClusterMixup"), partner, shares.float())


def _as_rows(centroids: Sequence[Sequence[float]]) -> Tensor:
    try:
        rows = torch.tensor(centroids, dtype=torch.float32)
    except (TypeError, ValueError):
        rows = torch.empty(0)
    if rows.ndim != 2 or not rows.numel() or not bool(rows.isfinite().all()):
        raise ValueError("IntraClusterMixup: centroids must be rows of as many finite numbers each; give K rows of D.")
    return rows
