"""Class probabilities softened by a temperature, wide enough for small differences."""

import torch
from torch import Tensor

__all__ = ["softened"]


def softened(logits: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T) over the last dimension of logits, in at least float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).div(temperature).log_softmax(dim=-1)
