"""CutMix: cut a box out of one image, paste it into another, and share the label by area.

Yun, Han, Oh, Chun, Choe and Yoo 2019, arXiv:1905.04899, Eq. 1 and 2. Symbols: lambda `lam`, the share of the own image;
alpha `alpha`; B `box` (top, bottom, left, right; pixels; half open); x_B `images[partner]`; letters: B samples of the
micro-batch, C channels, H height, W width, N boxes (1 for all samples, or B).
"""

import torch
from torch import Tensor

from ._memory import dense, fresh_like

__all__ = ["cutmix_box", "kept_fraction", "paste"]

# A copy needs no arithmetic, so numpy may take the elements, bfloat16 too, for integers of their size in bytes.
_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def cutmix_box(lam: Tensor, centre: Tensor, size: tuple[int, int]) -> Tensor:
    """Eq. 2: boxes whose sides are sqrt(1 - lam) of the image's, clipped at its borders.

    Half a side is floored, as in the authors' code, so a side is even before clipping.

    Args:
        lam: float64 `(N,)` in [0, 1]; 1 makes an empty box, 0 one as large as the image (of even sides).
        centre: int64 `(N, 2)`, row and column in pixels.
        size: (H, W) in pixels.

    Returns:
        int64 `(N, 4)`: top, bottom, left, right in pixels, half open.
    """
    limit = torch.tensor(size)
    half = (0.5 * torch.sqrt(1 - lam)[:, None] * limit).long()
    corners = torch.stack([centre - half, centre + half], dim=2)
    return corners.clamp(min=0).minimum(limit[:, None]).flatten(1)


def kept_fraction(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Lambda as realised, float64 `(N,)`: own pixels over all pixels.

    Args:
        box: int64 `(N, 4)`: top, bottom, left, right in pixels, half open.
        size: (H, W) in pixels.
    """
    top, bottom, left, right = box.unbind(1)
    pixels = size[0] * size[1]
    return (pixels - (bottom - top) * (right - left)).double() / pixels


def paste(images: Tensor, partner: Tensor, box: Tensor) -> Tensor:
    """Eq. 1 for the images: inside the box the partner's pixels, outside the own.

    Args:
        images: `(B, C, H, W)`, any dtype; left unchanged.
        partner: int64 `(B,)` on the CPU, whose pixels each sample is given.
        box: int64 `(N, 4)` on the CPU: top, bottom, left, right in pixels, half open; N is 1 or B.

    Returns:
        New tensor with shape, dtype and memory format of `images`.
    """
    if images.device.type != "cpu" or images.requires_grad:
        # On an accelerator one mask for the batch: B slices would be B kernels, each started by the host.
        partner, box = (it.to(images.device, non_blocking=True) for it in (partner, box))
        top, bottom, left, right = box[:, :, None].unbind(1)
        row, column = (torch.arange(side, device=images.device) for side in images.shape[2:])
        rows, columns = (row >= top) & (row < bottom), (column >= left) & (column < right)
        return torch.where(rows[:, None, :, None] & columns[:, None, None, :], images[partner], images)
    images = dense(images)
    mixed = fresh_like(images).copy_(images)
    bits = _SAME_SIZE[images.element_size()]
    source, result = images.view(bits).numpy(), mixed.view(bits).numpy()
    boxes = box.expand(len(images), 4).tolist()
    for own, other, (top, bottom, left, right) in zip(result, partner.tolist(), boxes, strict=True):
        own[:, top:bottom, left:right] = source[other, :, top:bottom, left:right]
    return mixed
