"""Gaussian blur of its own width for each image, as products with the weights of rows and columns."""

import torch
from torch import Tensor

from ._products import multiply

__all__ = ["blur_by_bands", "blur_weights", "gaussian_blur"]

# Pixels that are multiplied at once on the CPU, and of an image from which this is faster than whole products.
BAND, LARGE = 32, 48 * 48


def gaussian_blur(image: Tensor, sigma: Tensor, kernel: int) -> Tensor:
    """Gaussian blur with mirrored borders: torchvision's `gaussian_blur`.

    Args:
        image: float32 `(B, C, H, W)`; left alone.
        sigma: Standard deviation of each, pixels, float32 `(B,)`, on the images' device.
        kernel: Its extent, an odd number of pixels, less than twice each side.
    """
    height, width = image.shape[2:]
    rows = blur_weights(sigma, kernel, height)
    columns = rows if width == height else blur_weights(sigma, kernel, width)
    if image.device.type == "cpu" and height * width > LARGE:
        return blur_by_bands(image, rows, columns, kernel // 2)
    return multiply(rows, image, columns)


def blur_weights(sigma: Tensor, kernel: int, side: int) -> Tensor:
    """Weights of the pixels of a line in each pixel of the blurred line, float32 `(B, side, side)`.

    Args:
        sigma: Standard deviation, pixels, float32 `(B,)`.
        kernel: Its extent, an odd number of pixels, less than `2 * side`.
        side: Pixels of the line.
    """
    reach = kernel // 2
    distance = torch.arange(-reach, reach + 1, dtype=torch.float32, device=sigma.device)
    bell = torch.softmax((distance / sigma[:, None]).square_().mul_(-0.5), 1)
    # The kernel stands on the diagonals of a longer line, whose ends are then folded onto the pixels they mirror.
    long = bell.new_zeros(len(sigma), side, side + 2 * reach)
    strides = (long.stride(0), long.stride(1) + 1, 1)
    long.as_strided((len(sigma), side, kernel), strides).copy_(bell[:, None])
    long[..., reach + 1 : 2 * reach + 1] += long[..., :reach].flip(2)
    long[..., side - 1 : side - 1 + reach] += long[..., side + reach :].flip(2)
    return long[..., reach : reach + side]


def blur_by_bands(image: Tensor, rows: Tensor, columns: Tensor, reach: int) -> Tensor:
    """`multiply` without products of zeros: a pixel has no weights for pixels more than `reach` away."""
    count, channels, height, width = image.shape
    result, tall = torch.empty_like(image), image.new_empty(channels, height, width)
    for number in range(count):
        for here, there in _bands(height, reach):
            weights = rows[number, here, there].expand(channels, -1, -1)
            torch.bmm(weights, image[number, :, there], out=tall[:, here])
        lines, blurred = tall.view(-1, width), result[number].view(-1, width)
        for here, there in _bands(width, reach):
            torch.mm(lines[:, there], columns[number, here, there].T, out=blurred[:, here])
    return result


def _bands(side: int, reach: int) -> list[tuple[slice, slice]]:
    """Bands of a line, and the pixels that have weights in each."""
    return [
        (slice(start, min(side, start + BAND)), slice(max(0, start - reach), min(side, start + BAND + reach)))
        for start in range(0, side, BAND)
    ]
