"""MS-SSIM as a loss: how alike two images look at several scales.

Letters: B images `(B, C, H, W)`, M scales.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

__all__ = ["ms_ssim_l1_loss", "ms_ssim_loss", "scales_for"]

# What each scale counts, finest first (Wang et al. 2003, section 3.2).
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def window(sigma: float) -> int:
    """Side of the Gaussian window that torchmetrics takes for `sigma`, pixels."""
    return int(3.5 * sigma + 0.5) * 2 + 1


def scales_for(side: int, sigma: float = 1.5) -> int:
    """How many of the five scales images with a short side of so many pixels have: each halves, and the window fits.

    >>> [scales_for(side) for side in (10, 11, 32, 64, 256)]
    [0, 1, 2, 3, 5]
    """
    # torchmetrics divides by the square of the scale's number, which of the fourth is a little more.
    return sum(side // max(2**scale, scale**2) >= window(sigma) for scale in range(len(BETAS)))


def ms_ssim_loss(first: Tensor, second: Tensor, data_range: float = 1.0, sigma: float = 1.5) -> Tensor:
    """1 - MS-SSIM, the mean over images, 0 for equal ones and at most 1.

    MS-SSIM is the product of contrast and structure at each scale, raised to its weight, and of luminance at the last
    one. Small images have fewer scales, whose weights are then divided by their sum. Contrasts below 0 count as 0,
    for a root of them does not exist.

    Args:
        first: `(B, C, H, W)`.
        second: Of the same shape.
        data_range: Difference of the largest and the smallest number that a pixel may have.
        sigma: Of the Gaussian window, pixels; smaller ones for images of a few pixels.

    Raises:
        ValueError: not even one window fits into the image.

    Reference: Wang et al. 2003; as a loss: Snell et al. 2017, arXiv:1511.06409
    """
    side = min(first.shape[2:])
    scales = scales_for(side, sigma)
    if scales == 0:
        raise ValueError(
            f"MS-SSIM looks through windows of {window(sigma)} pixels and the image's side is {side}; lower sigma"
        )
    whole = sum(BETAS[:scales]) if scales < len(BETAS) else 1.0
    betas = tuple(beta / whole for beta in BETAS[:scales])
    alike = multiscale_structural_similarity_index_measure(
        first, second, kernel_size=window(sigma), sigma=sigma, data_range=data_range, betas=betas, normalize="relu"
    )
    assert isinstance(alike, Tensor)
    return 1 - alike


def ms_ssim_l1_loss(
    first: Tensor, second: Tensor, l1_share: float = 0.16, data_range: float = 1.0, sigma: float = 1.5
) -> Tensor:
    """`ms_ssim_loss` and the mean absolute difference, a weighted mean of the two, computed in float32.

    Args:
        first: `(B, C, H, W)`.
        second: Of the same shape.
        l1_share: What the difference, over `data_range`, weighs, 0..1; the paper's is 0.16.
        data_range: As `ms_ssim_loss`.
        sigma: As `ms_ssim_loss`.

    Raises:
        ValueError: as `ms_ssim_loss`.

    Reference: Zhao et al. 2017, arXiv:1511.08861, whose difference is weighed by a Gaussian window
    """
    first, second = first.float(), second.float()
    # Variances as differences of moments do not bear half precision.
    with torch.autocast(first.device.type, enabled=False):
        loss = ms_ssim_loss(first, second, data_range, sigma)
    return (1 - l1_share) * loss + l1_share * F.l1_loss(first, second) / data_range
