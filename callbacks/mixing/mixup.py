"""MixUp: train on the line between two images and between their labels.

Zhang, Cisse, Dauphin and Lopez-Paz 2017, arXiv:1710.09412, Eq. 1 and the algorithm of its Figure 1. Symbols: lambda
`lam`, the share of the own image; alpha `alpha`; x_j `images[partner]`; B samples of the micro-batch.
"""

import torch
from torch import Tensor

from ._memory import dense, fresh_like

__all__ = ["mixup"]

# Bytes mixed at a time on the CPU: they stay in the second-level cache between the operations of Eq. 1.
_CHUNK = 2**20


def mixup(images: Tensor, partner: Tensor, lam: float | Tensor) -> Tensor:
    """`lam * images + (1 - lam) * images[partner]`, Eq. 1.

    Args:
        images: `(B, ...)`, floating point; left unchanged.
        partner: int64 `(B,)`, which sample each is mixed with.
        lam: Share of the own image in [0, 1]: one number, or `(B,)`.

    Returns:
        New tensor with shape, dtype and memory format of `images`; each product is rounded to that dtype.

    Raises:
        ValueError: the images are not floating point.
    """
    if not images.is_floating_point():
        raise ValueError(
            f"MixUp: the images are {images.dtype}, which cannot hold a mixture; convert them to floats before (in the "
            "dataset or in `on_after_batch_transfer`), or use CutMix."
        )
    if images.device.type != "cpu" or images.requires_grad:
        partner = partner.to(images.device, non_blocking=True)
        share = lam
        if isinstance(lam, Tensor):
            share = lam.to(images.device, non_blocking=True).view(-1, *[1] * (images.ndim - 1))
        own, other = images * share, images[partner] * (1 - share)
        return own.to(images.dtype) + other.to(images.dtype)
    images = dense(images)
    mixed = fresh_like(images)
    size = images[0].numel()
    source, result = (it.as_strided((len(it), size), (size, 1)) for it in (images, mixed))
    rows = max(1, _CHUNK // (size * images.element_size()))
    other = torch.empty_like(source[:rows])
    for start in range(0, len(source), rows):
        part = slice(start, start + rows)
        share = lam[part, None] if isinstance(lam, Tensor) else lam
        theirs = other[: len(source[part])]
        torch.index_select(source, 0, partner[part], out=theirs)
        torch.mul(source[part], share, out=result[part])
        result[part].add_(theirs.mul_(1 - share))
    return mixed
