"""SeTa: each epoch visits a window of samples, from easy to hard, Zhou, Gao and Wang 2025, arXiv:2503.13385.

Symbols: r `prune_ratio`, k `num_group`, the window's share alpha `window_scale`, the pruned share of the training delta
`delta`; N samples; t epochs since pruning began.
"""

from typing import final

import numpy as np
import torch
from torch import Tensor

from ..hooks._checks import number, whole
from ..hooks.recorded_losses import RecordedLosses
from ..hooks.training_order import Visit

__all__ = ["DynamicDataPruning", "loss_groups", "random_part", "window_at"]


def random_part(samples: int, prune_ratio: float, random: np.random.Generator) -> Tensor:
    """SeTa's random pruning: positions of the `round((1 - r) N)` samples that are kept, int64, rising.

    Args:
        samples: N.
        prune_ratio: r, 0 to below 1.
        random: Draws which.
    """
    kept = max(1, round((1 - prune_ratio) * samples))
    return torch.from_numpy(np.sort(random.permutation(samples)[:kept]))


def loss_groups(losses: Tensor, num_group: int, seed: int = 0) -> Tensor:
    """SeTa's groups of samples by loss, as k-means finds them: the group of each, 0 the easiest, int64 `(N,)`.

    Of fewer distinct losses than `num_group` each is a group.

    Args:
        losses: `(N,)`, finite.
        num_group: k, at least 1.
        seed: Of scikit-learn's k-means.

    Example:
        >>> loss_groups(torch.tensor([0.1, 5.0, 0.2, 1.0]), 3).tolist()
        [0, 2, 0, 1]
    """
    # Here, because it takes a second to import.
    from sklearn.cluster import KMeans

    column = losses.double().numpy()[:, None]
    groups = min(num_group, len(np.unique(column)))
    if groups == 1:
        return torch.zeros(len(losses), dtype=torch.int64)
    means = KMeans(groups, n_init=1, random_state=seed).fit(column)
    rank = np.argsort(np.argsort(means.cluster_centers_[:, 0]))
    return torch.from_numpy(rank[means.labels_].astype(np.int64))


def window_at(t: int, num_group: int, window_scale: float) -> range:
    """SeTa's window of groups in epoch t of pruning: as many each time, one harder from epoch to epoch, and again.

    It has `w = max(1, round(alpha k))` groups and begins with group `t mod (k - w + 1)`.

    Example:
        >>> [list(window_at(t, 4, 0.5)) for t in range(4)]
        [[0, 1], [1, 2], [2, 3], [0, 1]]
    """
    width = min(num_group, max(1, round(window_scale * num_group)))
    start = t % (num_group - width + 1)
    return range(start, start + width)


@final
class DynamicDataPruning(RecordedLosses):
    """Trains each epoch on a part of the samples, chosen by the loss that each had last: a window from easy to hard.

    Of every epoch after the first, `prune_ratio` of the samples are left out at random. The others are put into
    `num_group` groups by their last loss, and of these a window of `window_scale` is visited, which moves from the
    easiest groups to the hardest and begins again. In the last part of the training samples are left out at random
    alone. Losses are those that training computes anyway; samples that are left out cost nothing, for the loader does
    not fetch them. The batch, its loss and validation stay untouched.

    Args:
        prune_ratio: Share of the samples left out at random in each epoch, 0 to below 1. Neutral, with one group: 0.
        num_group: Groups of samples by loss, at least 1; the paper's 10. Neutral, with a ratio of 0: 1.
        window_scale: Share of the groups that is visited, above 0, at most 1; the paper's 0.5. Neutral, with a ratio of
            0: 1.
        delta: Share of the epochs after which only chance leaves samples out, 0 to 1; the paper's 0.875. Below 1 the
            Trainer needs `max_epochs`.
        network: Path of the part of the module that makes logits `(B, K)` of images, as `network`; empty is the module
            itself, whose forward `training_step` calls.
        seed: Of the random part and of k-means, >= 0.
        image_key: Key of the images where batches are mappings; elsewhere they come first.
        target_key: Key of the labels where batches are mappings; elsewhere they come second.
        name: Part of the state key.

    Shape:
        Logits `(B, K)` of two classes or more; labels int64 `(B,)`, or shares of classes `(B, K)` that sum to 1.

    Raises:
        ValueError: a setting outside its range; at set-up, if another callback chooses samples, there is no such part,
            or the training has no last epoch; before the first batch, if the loader does not tell its samples apart or
            gives some more than once; in the first batch, if there are no such logits or labels.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DynamicDataPruning
        >>> pruning = DynamicDataPruning(prune_ratio=0.1, num_group=10)
        >>> trainer = Trainer(max_epochs=20, callbacks=[pruning], accelerator="cpu", logger=False)

    Reference: Zhou et al. 2025, arXiv:2503.13385

    BibTeX:
        @inproceedings{zhou2025seta,
          title = {Scale Efficient Training for Large Datasets},
          author = {Zhou, Qing and Gao, Junyu and Wang, Qi},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          year = {2025},
          eprint = {2503.13385},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The first epoch visits every sample, so that each has a loss of its own to be grouped by. A group is what
        k-means finds, so windows differ in size; one that holds less than a batch is widened towards the easy groups.

    See also:
        `DataDiet`, which leaves samples out for good; `HardBatches`.
    """

    neutral = ({"prune_ratio": 0.0, "num_group": 1}, {"prune_ratio": 0.0, "window_scale": 1.0})

    def __init__(
        self,
        prune_ratio: float = 0.1,
        num_group: int = 10,
        window_scale: float = 0.5,
        delta: float = 0.875,
        network: str = "",
        seed: int = 0,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(network=network, image_key=image_key, target_key=target_key, name=name)
        own = "DynamicDataPruning"
        number(own, "prune_ratio", prune_ratio, 0, 1)
        whole(own, "num_group", num_group, 1)
        number(own, "window_scale", window_scale, 0, 1)
        number(own, "delta", delta, 0, 1)
        whole(own, "seed", seed, 0)
        if prune_ratio == 1 or window_scale == 0:
            raise ValueError(
                f"{own}: prune_ratio={prune_ratio} and window_scale={window_scale} leave no sample to train on; give a "
                "prune_ratio below 1 and a window_scale above 0."
            )
        self.prune_ratio, self.num_group, self.window_scale = prune_ratio, num_group, window_scale
        self.delta, self.seed = delta, seed

    def ready(self) -> str | None:
        if self.delta < 1 and self.max_epochs is None:
            raise ValueError(
                f"DynamicDataPruning: the training has no last epoch, so nobody knows when delta={self.delta} of it is "
                "over; give the Trainer max_epochs, or delta=1."
            )
        return None

    def visits(self, epoch: int, samples: int) -> Visit | None:
        losses = self.known_losses(samples)
        if epoch == 0 or not losses.isfinite().any():
            return None
        kept = random_part(samples, self.prune_ratio, np.random.default_rng((self.seed, epoch)))
        if self.max_epochs is not None and epoch >= self.delta * self.max_epochs:
            return Visit(kept)
        group = loss_groups(_filled(losses)[kept], self.num_group, self.seed)
        window = window_at(epoch - 1, int(group.max()) + 1, self.window_scale)
        return Visit(kept[_inside(group, window, 1 if self.training_set is None else self.training_set.batch_size)])


def _inside(group: Tensor, window: range, least: int) -> Tensor:
    """Which samples are in the window, widened towards the easy ones until it holds `least` of them."""
    for start in range(window.start, -1, -1):
        inside = (group >= start) & (group < window.stop)
        if inside.sum() >= least:
            break
    return inside


def _filled(losses: Tensor) -> Tensor:
    """Of samples that never came (a loader that drops its last batch) the mean; of what overflowed the highest."""
    finite = losses[losses.isfinite()]
    unseen = losses.where(~losses.isnan(), finite.mean())
    return unseen.clamp(max=float(finite.max()))
