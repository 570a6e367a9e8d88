"""Classifier-free guidance: one network learns with and without labels, and sampling goes on from the difference."""

from typing import Any

import torch
from torch import Tensor

from .processes.process import Network

__all__ = ["drop_labels", "guided"]


def drop_labels(label: Tensor, uniform: Tensor, share: float, num_classes: int) -> Tensor:
    """Labels of which a share, each image by itself, became `num_classes`, which stands for none.

    Args:
        label: int64 `(B,)`.
        uniform: Draws `(B,)` in [0, 1).
        share: 0..1; 0 keeps all.
        num_classes: K.

    Reference: Ho and Salimans 2022, arXiv:2207.12598, algorithm 1
    """
    return torch.where(uniform.to(label.device) < share, num_classes, label)


def guided(network: Network, weight: float, num_classes: int) -> Network:
    """A network that answers (1 + w) times as with the label, less w times as without one (equation 6).

    Both are asked in one pass of twice the batch; with w = 0 the network is asked with its labels alone.

    Args:
        network: Maps x `(B, C, H, W)`, t `(B,)` and labels to an answer of x's shape; `num_classes` is no label.
        weight: w; 0 follows the labels as they were learned, more exaggerates them, -1 leaves them out.
        num_classes: K.

    Raises:
        ValueError: there are no classes, so nothing guides.

    Reference: Ho and Salimans 2022, arXiv:2207.12598
    """
    if weight and not num_classes:
        raise ValueError(f"guidance is {weight} and the network was trained without labels; leave guidance at 0")

    def answer(x: Tensor, time: Tensor, label: Any) -> Tensor:
        if not weight:
            return network(x, time, label)
        labels = torch.cat([label, torch.full_like(label, num_classes)])
        told, untold = network(torch.cat([x, x]), torch.cat([time, time]), labels).chunk(2)
        return (1 + weight) * told - weight * untold

    return answer
