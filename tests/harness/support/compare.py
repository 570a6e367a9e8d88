"""How far two sets of weights are apart, and modules that begin alike."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["distance", "seeded"]

Made = TypeVar("Made")


def distance(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """The largest difference of an element over all tensors of two state dicts, which must have the same keys."""
    assert left.keys() == right.keys()
    return max((left[name].double() - right[name].double()).abs().max().item() for name in left)


def seeded(kind: Callable[..., Made], *args: object) -> Made:
    """What `kind(*args)` makes, with the same random weights every time."""
    torch.manual_seed(0)
    return kind(*args)
