"""From scores to masks: the largest are kept, over all layers together."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["keep_largest"]


def keep_largest(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Boolean masks, by name, in which the `count` largest scores in all are True.

    None that is False in `kept` turns True, whatever its score; `count` is at most the number that is True in it.
    """
    flat = torch.cat([score.masked_fill(~kept[name], -torch.inf).flatten() for name, score in scores.items()])
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(count, sorted=False).indices] = True
    parts = mask.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}
