"""Whether a network's answer and a batch's labels are logits and classes, so that samples have a cross entropy each."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["refuse_unlike_classes"]

# Of the sum of a sample's shares from 1, which bfloat16 rounds.
_ROUNDED = 1e-2


def refuse_unlike_classes(owner: str, part: str, logits: Any, targets: Any, rows: int, values: bool = True) -> None:
    """Refuse logits and labels of which samples have no cross entropy of their own.

    Args:
        owner: Class name of the callback.
        part: Whose answer the logits are.
        logits: Are to be `(B, K)`, of K >= 2.
        targets: Are to be classes, int64 `(B,)` from 0 to K - 1, or shares of classes `(B, K)` whose rows sum to 1.
        rows: B; rows behind these, of methods that train on a batch twice, are left alone.
        values: Whether labels themselves are looked at, which waits for their device.

    Raises:
        ValueError: they are not.
    """
    if not (isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) >= rows and logits.shape[1] >= 2):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"{owner}: {part} answers {came} to a batch of {rows} and not logits ({rows}, K) of two classes or more; "
            "name with network= the part of the module that makes logits of images, two of them for yes and no."
        )
    shapes = [(1, ()), (2, logits.shape[1:])]
    known = isinstance(targets, Tensor) and (targets.ndim, targets.shape[1:]) in shapes and len(targets) >= rows
    if not known or (targets.ndim == 1 and targets.dtype != torch.int64):
        came = f"{tuple(targets.shape)} {targets.dtype}" if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"{owner}: labels of these logits are classes, int64 ({rows},), or shares of classes "
            f"({rows}, {logits.shape[1]}), and the batch has {came}; say with target_key= where labels are, or change "
            "them in the dataset."
        )
    if not values or not rows:
        return
    if targets.ndim == 1:
        low, high = targets[:rows].min().item(), targets[:rows].max().item()
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"{owner}: labels reach from {low} to {high}, and the classes of {part} from 0 to "
                f"{logits.shape[1] - 1}; leave samples without a class out of the data."
            )
        return
    shares = targets[:rows].float()
    if not bool(((shares.sum(1) - 1).abs() < _ROUNDED).all() & (shares >= 0).all()):
        raise ValueError(
            f"{owner}: labels {tuple(targets.shape)} are no shares of classes, for not all of their rows sum to 1, as "
            f"where a sample has several classes or none; leave {owner} out, or give each sample one class."
        )
