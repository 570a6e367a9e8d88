"""Pruning by magnitude: the smallest weights go.

All weights of all layers are ranked by |w| together: Gupta et al. 2022, arXiv:2209.14624, and before them, layer by
layer, Han et al. 2015, arXiv:1506.02626.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.prune import L1Unstructured

from ._criterion import Criterion, Moment

__all__ = ["Magnitude", "magnitude_masks"]


def magnitude_masks(weights: Mapping[str, Tensor], kept: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Masks of the largest absolute values among those that are kept, over all tensors together.

    The choice is that of `torch.nn.utils.prune.global_unstructured` with `L1Unstructured`, among equal values too.

    Args:
        weights: Tensors of any shape, by name; their order is that in which equal values are met.
        kept: Boolean masks of their shapes: what may be True in the answer.
        count: How many stay, from 0 to the number that `kept` has.

    >>> magnitude_masks({"w": torch.tensor([0.1, -3.0])}, {"w": torch.tensor([True, True])}, count=1)
    {'w': tensor([False,  True])}
    """
    chosen = torch.cat([kept[name].flatten() for name in weights])
    candidates = torch.cat([weight.detach().flatten() for weight in weights.values()])[chosen]
    gone = len(candidates) - count
    stay = L1Unstructured(gone).compute_mask(candidates, torch.ones_like(candidates)).bool()
    parts = chosen.masked_scatter(chosen, stay).split([weight.numel() for weight in weights.values()])
    return {name: part.view(weights[name].shape) for name, part in zip(weights, parts, strict=True)}


class Magnitude(Criterion):
    """Keeps the weights of largest magnitude."""

    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        return magnitude_masks(moment.weights, moment.kept, count)
