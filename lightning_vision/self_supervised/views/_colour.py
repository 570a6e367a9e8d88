"""Changes of colour, a parameter an image: torchvision's operations on values from 0 to 1, for a whole batch at once.

Brightness, contrast and saturation are one operation, the blend of an image with black, with its mean grey or with the
grey of each pixel; so one product serves a batch in which each image is at another of the three.
"""

import numpy as np
import torch
from torch import Tensor

from ._draws import Array

__all__ = ["BRIGHTNESS", "CONTRAST", "HUE", "SATURATION", "adjust_hue", "blend", "grey_of", "solarise"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# ITU-R BT.601 with torchvision's digits.
LUMA = np.array([0.2989, 0.587, 0.114], np.float32)


def blend(image: Tensor, kind: Array, factor: Array) -> Tensor:
    """Brightness, contrast or saturation, each image another one: `factor * image + (1 - factor) * other`, in 0..1.

    The other is black for `BRIGHTNESS`, the mean of the image's grey for `CONTRAST`, the grey of each pixel for
    `SATURATION`: torchvision's `adjust_brightness`, `adjust_contrast` and `adjust_saturation`. A factor of 1, and the
    saturation of a grey image, give the image itself, bit for bit.

    Args:
        image: float32 `(B, 1 or 3, H, W)`, 0..1; left alone.
        kind: `BRIGHTNESS`, `CONTRAST` or `SATURATION`, int64 `(B,)`.
        factor: At least 0, float32 `(B,)`.
    """
    flat, grey, contrast = image.flatten(2), kind == SATURATION, kind == CONTRAST
    luma = LUMA if image.shape[1] == 3 else np.ones(1, np.float32)
    if image.shape[1] == 1:
        factor, grey = np.where(grey, np.float32(1), factor), np.zeros_like(grey)
    rest, other = 1 - factor, None
    if contrast.any():
        other = ((flat.mean(2) * _there(luma, image)).sum(1) * _there(rest * contrast, image)).view(-1, 1, 1)
    if grey.any():
        matrix = factor[:, None, None] * np.eye(3, dtype=np.float32) + (rest * grey)[:, None, None] * luma
        mixing = _there(matrix, image)
        blended = mixing @ flat if other is None else torch.baddbmm(other, mixing, flat)
    else:
        blended = flat * _there(factor, image).view(-1, 1, 1)
        if other is not None:
            blended.add_(other)
    return blended.clamp_(0, 1).view(image.shape)


def grey_of(image: Tensor) -> Tensor:
    """The grey of each pixel, `(B, 1, H, W)`, of an image `(B, 3, H, W)`: torchvision's `rgb_to_grayscale`."""
    red, green, blue = image.split(1, 1)
    return (red * float(LUMA[0])).add_(green, alpha=float(LUMA[1])).add_(blue, alpha=float(LUMA[2]))


def adjust_hue(image: Tensor, shift: Array) -> Tensor:
    """Colours turned on the colour circle: torchvision's `adjust_hue`.

    With the smallest and the largest channel m and M, chroma c = M - m and hue h in 0..6 from red over green and blue,
    the place t = h - 3 on the circle has the size 2 + (r - g - b + m) / c and the sign of b - g; back from it, red
    is m + c min(1, max(0, |t| - 1)), green and blue are m + c min(1, max(0, 2 - |t + 1|)) and the same with t - 1. So
    no pixel asks which of its channels is the largest.

    Args:
        image: float32 `(B, 3, H, W)`, 0..1; left alone.
        shift: Turns, -0.5 to 0.5, float32 `(B,)`.
    """
    red, green, blue = image.unbind(1)
    low = torch.minimum(red, green).clamp_(max=blue)
    # Where it is 0, so is what is divided by it and what it is multiplied with matters as little.
    chroma = torch.maximum(red, green).clamp_(min=blue).sub_(low).clamp_(min=1e-12)
    place = (red - green).sub_(blue).add_(low).div_(chroma).add_(2)
    place.copysign_(blue - green).add_(_there(6 * shift, image).view(-1, 1, 1))
    place.sub_((place / 6).round_(), alpha=6)
    turned = torch.empty_like(image)
    torch.addcmul(low, chroma, (2 - (place + 1).abs_()).clamp_(0, 1), out=turned[:, 1])
    torch.addcmul(low, chroma, (2 - (place - 1).abs_()).clamp_(0, 1), out=turned[:, 2])
    torch.addcmul(low, chroma, place.abs_().sub_(1).clamp_(0, 1), out=turned[:, 0])
    return turned


def solarise(image: Tensor) -> Tensor:
    """Values of at least 0.5 inverted, which is the smaller of `image` and `1 - image`: torchvision's `solarize`."""
    return torch.minimum(image, 1 - image)


def _there(numbers: Array, image: Tensor) -> Tensor:
    return torch.from_numpy(numbers).to(image.device, non_blocking=True)
