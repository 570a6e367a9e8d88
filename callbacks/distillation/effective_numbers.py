"""Effective numbers: weights of classes for which a further image of a large class counts less and less.

Cui et al. 2019, arXiv:1901.05555. Letters: n_y training images of class y, K classes, E_y their effective number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["effective_number_weights"]


def effective_number_weights(counts: Sequence[int], beta: float) -> Tensor:
    """Weights of classes, inverse to their effective numbers of images, with the mean 1: float32 `(K,)`.

    The effective number is E_y = (1 - beta^n_y) / (1 - beta), and w_y is in proportion to 1 / E_y. With beta 0 every
    class has one effective image, so all weights are 1; near 1 they become inverse to the counts.

    Args:
        counts: n_y of each class, at least 1.
        beta: In [0, 1); the authors have 0.9, 0.99, 0.999 and 0.9999. Neutral 0.

    Raises:
        ValueError: beta is outside [0, 1), or a class has no image.

    Example:
        >>> from lightning_vision.callbacks import effective_number_weights
        >>> effective_number_weights([30, 30], beta=0.99)
        tensor([1., 1.])

    Reference: Cui et al. 2019, arXiv:1901.05555
    """
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number_weights: beta is {beta!r}; give a number from 0 to below 1.")
    if not counts or min(counts) < 1:
        raise ValueError(f"effective_number_weights: counts is {list(counts)}; give at least 1 for each class.")
    # 1 - beta^n by expm1: with beta near 1 the difference would lose its digits.
    log_beta = torch.tensor(beta, dtype=torch.float64).log()
    weights = (1 - beta) / -torch.expm1(torch.tensor(counts, dtype=torch.float64) * log_beta)
    return (weights / weights.mean()).float()
