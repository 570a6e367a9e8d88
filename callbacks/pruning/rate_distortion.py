"""Rate-distortion pruning: how much each layer gives is chosen so that the outputs change least.

Pruning layer l at rate s changes the outputs by delta_l(s) = E ||f(x; W) - f(x; W with layer l pruned at s)||^2.
Pruning all layers changes them by about the sum of these, so the best rates for a number of pruned weights come from
dynamic programming. Xu et al. 2023, arXiv:2308.10438.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_vision.inspection.at_rest import at_rest

from ._asking import answer
from ._criterion import Criterion, Moment
from ._scores import keep_largest

__all__ = [
    "RateDistortion",
    "distortion_curves",
    "least_distortion_counts",
    "pruning_distortion",
    "uniform_pruning_counts",
]

# Above this many weights, the dynamic program counts them in units of several.
UNITS = 2048
RATES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)


def pruning_distortion(
    module: nn.Module, images: Tensor, weights: Mapping[str, Tensor], masks: Sequence[Mapping[str, Tensor]]
) -> list[float]:
    """How far masks take the outputs away: for each, the mean over images of the squared distance to the unmasked ones.

    The module computes in evaluation mode and is left as it was.

    Args:
        module: Called on the images; its parameters' names are the keys of `weights`.
        images: `(B, C, H, W)`.
        weights: What is to be masked, in the place of the module's own.
        masks: Boolean, by name; names that a mapping lacks are not masked in it.

    Raises:
        ValueError: the module cannot be called on images, or a distance is not finite.
    """
    with at_rest(module):
        dense = answer("RateDistortion", module, images, weights)
        found = []
        for each in masks:
            masked = {name: weights[name] * mask for name, mask in each.items()}
            apart = answer("RateDistortion", module, images, {**weights, **masked}) - dense
            found.append(apart.double().square().sum() / len(images))
    distortions = torch.stack(found).tolist() if found else []
    if not np.isfinite(distortions).all():
        raise ValueError(
            f"RateDistortion: pruning layers of {type(module).__name__} moves its outputs by a distance that is not "
            "finite; let training begin with finite outputs, or choose another criterion."
        )
    return distortions


def distortion_curves(
    module: nn.Module,
    images: Tensor,
    weights: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    rates: Sequence[float] = RATES,
) -> dict[str, tuple[list[int], list[float]]]:
    """The rate-distortion curve of each layer: counts of weights pruned by magnitude, and the distortions they make.

    Args:
        module: As in `pruning_distortion`.
        images: As in `pruning_distortion`.
        weights: Masked ones at zero; each name is a layer.
        kept: Their masks so far, boolean.
        rates: Shares of what a layer has left that are tried, in (0, 1]; counts are rounded. 0 and 1 are added.

    Returns:
        By name, rising counts, from 0 to all that the layer has left, and distortions, the first 0.
    """
    curves = {}
    for name, weight in weights.items():
        left = int(kept[name].sum())
        counts = sorted({round(rate * left) for rate in (*rates, 1.0)} - {0})
        masks = [_pruned(name, weight, kept[name], count) for count in counts]
        curves[name] = ([0, *counts], [0.0, *pruning_distortion(module, images, weights, masks)])
    return curves


def least_distortion_counts(curves: Sequence[NDArray[np.float64]], target: int) -> list[int]:
    """Counts, one for each layer, that sum to `target` at the least sum of distortions.

    It is solved exactly by dynamic programming over layers: the best sum for t weights in the first l layers is the
    least, over k, of that for t - k weights in the first l - 1, plus the distortion of k weights in layer l.

    Args:
        curves: For each layer the distortion of pruning 0, 1, 2, ... weights, all that it has in the end.
        target: At most all that the layers have.

    Example:
        >>> least_distortion_counts([np.array([0.0, 1.0, 5.0]), np.array([0.0, 2.0, 3.0])], 2)
        [0, 2]
    """
    best = np.full(target + 1, np.inf)
    best[0] = 0.0
    choices = []
    for curve in curves:
        # Row t of the windows holds the best sums for t - K, ..., t weights, infinite below none.
        padded = np.concatenate([np.full(len(curve) - 1, np.inf), best])
        sums = np.lib.stride_tricks.sliding_window_view(padded, len(curve)) + curve[::-1]
        chosen = sums.argmin(axis=1)
        best = sums[np.arange(target + 1), chosen]
        choices.append(len(curve) - 1 - chosen)
    counts = []
    for choice in reversed(choices):
        counts.append(int(choice[target]))
        target -= counts[-1]
    return counts[::-1]


def uniform_pruning_counts(sizes: Sequence[int], target: int) -> list[int]:
    """Counts that sum to `target`, in proportion to the sizes but for what rounding takes or gives.

    Example:
        >>> uniform_pruning_counts([10, 10, 5], 13)
        [5, 5, 3]
    """
    ends = np.cumsum([0, *sizes])
    return np.diff(ends * target // max(int(ends[-1]), 1)).tolist()


@final
class RateDistortion(Criterion):
    """Prunes each layer by magnitude, at the rates that together change the network's outputs least.

    The training batch that it is shown is its calibration set. Each layer is pruned at each of `rates` alone and the
    distance of the outputs is measured; dynamic programming then picks counts that hit the target exactly. Between
    measured counts distortions are interpolated. At last the chosen masks and those of one rate for all layers are
    compared on the batch, all layers pruned, and the better ones are taken.

    Args:
        rates: Shares of what a layer has left that are tried, in (0, 1]; more are slower and finer. 0 and 1 are tried
            always.

    Raises:
        ValueError: from the constructor, for rates out of range; from `keep`, as `pruning_distortion`.

    Example:
        >>> from lightning_vision.callbacks.pruning.rate_distortion import RateDistortion
        >>> RateDistortion(rates=(0.5, 0.9)).needs_images
        True

    Reference: Xu et al. 2023, arXiv:2308.10438

    BibTeX:
        @inproceedings{xu2023efficient,
          title = {Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural Networks},
          author = {Xu, Kaixin and Wang, Zhe and Geng, Xue and Lin, Jie and Wu, Min and Li, Xiaoli and Lin, Weisi},
          booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
          year = {2023},
          eprint = {2308.10438},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The authors' program chooses among measured rates and may miss the target by what rounding leaves; here every
        count may be chosen and the target is hit. Large networks are counted in units of a 2048th of their weights.
        One rate for all layers is a rival that has to be beaten on the batch itself.

    See also:
        `Pruning`, which asks it.
    """

    needs_images = True

    def __init__(self, rates: Sequence[float] = RATES) -> None:
        if not rates or not all(isinstance(rate, (int, float)) and 0 < rate <= 1 for rate in rates):
            raise ValueError(f"RateDistortion: rates is {rates!r}; give numbers above 0 and at most 1.")
        self.rates = tuple(rates)

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        assert moment.images is not None
        weights, kept = moment.weights, moment.kept
        sizes = [int(mask.sum()) for mask in kept.values()]
        target = sum(sizes) - count
        if target == 0:
            return kept
        curves = distortion_curves(moment.module, moment.images, weights, kept, self.rates)
        rivals = []
        for counts in (_chosen([curves[name] for name in kept], target), uniform_pruning_counts(sizes, target)):
            pruned = zip(kept, counts, strict=True)
            rivals.append({k: v for name, n in pruned for k, v in _pruned(name, weights[name], kept[name], n).items()})
        ours, uniform = pruning_distortion(moment.module, moment.images, weights, rivals)
        return rivals[0] if ours <= uniform else rivals[1]


def _pruned(name: str, weight: Tensor, kept: Tensor, count: int) -> dict[str, Tensor]:
    """The mask of one layer without its `count` smallest weights."""
    return keep_largest({name: weight.abs()}, {name: kept}, int(kept.sum()) - count)


def _chosen(curves: Sequence[tuple[list[int], list[float]]], target: int) -> list[int]:
    """Counts that sum to `target`, the best in units; what is left over goes where it costs least."""
    sizes = [counts[-1] for counts, _ in curves]
    unit = -(-sum(sizes) // UNITS)

    tables = [np.interp(unit * np.arange(size // unit + 1), *curve) for size, curve in zip(sizes, curves, strict=True)]
    units = min(target // unit, sum(len(table) - 1 for table in tables))
    chosen = [unit * count for count in least_distortion_counts(tables, units)]
    while (rest := target - sum(chosen)) > 0:
        steps = [min(rest, unit, size - count) for size, count in zip(sizes, chosen, strict=True)]
        costs = [
            float(np.diff(np.interp([count, count + step], *curve))[0]) / step if step else float("inf")
            for count, step, curve in zip(chosen, steps, curves, strict=True)
        ]
        best = int(np.argmin(costs))
        chosen[best] += steps[best]
    return chosen
