"""A distance of images that outliers count in less than in a squared one."""

import math

from torch import Tensor

__all__ = ["pseudo_huber"]


def pseudo_huber(difference: Tensor, share: float = 0.00054) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each image, c = share sqrt(P) for P numbers of an image, `(B,)`.

    Near 0 it is |d|^2 / 2c, far from it |d|: one image that is told badly does not outweigh the batch.

    Args:
        difference: d, `(B, ...)`.
        share: c over the square root of P, above 0; the default is the authors'.

    Reference: Song and Dhariwal 2023, arXiv:2310.14189, section 3.3
    """
    flat = difference.flatten(1)
    bend = share * math.sqrt(flat.shape[1])
    return (flat.square().sum(1) + bend**2).sqrt() - bend
