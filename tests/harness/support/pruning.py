"""What a criterion of pruning is asked with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.callbacks.pruning._criterion import Moment

__all__ = ["moment_of", "weights_of"]


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Weights of Linear and convolutional layers, by parameter name."""
    return {name: it.detach() for name, it in module.named_parameters() if name.endswith("weight") and it.ndim > 1}


def moment_of(module: Any, images: Tensor | None, kept: Mapping[str, Tensor] | None = None, step: int = 0) -> Moment:
    """The moment at which nothing but what `kept` masks was pruned."""
    weights = weights_of(module)
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()} | dict(kept or {})
    masked = {name: weight * masks[name] for name, weight in weights.items()}
    return Moment(step, masked, masks, module, images, torch.Generator().manual_seed(0))
