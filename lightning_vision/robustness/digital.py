"""Corruptions by cameras and software: little contrast, elastic distortion, coarse pixels, JPEG.

Hendrycks and Dietterich 2019, arXiv:1903.12261; the severities are those of ImageNet-C, but for the distortion, which
is that of Michaelis et al. 2019, arXiv:1907.07484, because ImageNet-C's moves objects out of their boxes. Each function
takes one image, float32 `(C, H, W)` in 0..1, and the stream of its draws.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from ._pixels import Pixels, sampled, scale

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate"]


def contrast(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Leave 40, 30, 20, 10 or 5 percent of how far each channel of an image goes from its mean.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    mean = image.mean((1, 2), keepdims=True)
    return mean + np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]) * (image - mean)


def elastic_transform(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Move the pixels of an image by a smooth random field of standard deviation 1.02, 1.32, 1.73, 2.04 or 2.44 pixels.

    The field is white noise after a Gaussian of 2.24 pixels, a hundredth of the side; both lengths are for images of
    224 pixels, smaller in smaller ones.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Where the field is drawn from; at all severities it has the same directions.

    Reference: Michaelis et al. 2019, arXiv:1907.07484
    """
    sigma, size = 2.24 * scale(image), (1.018, 1.323, 1.730, 2.036, 2.443)[severity - 1] * scale(image)
    impulse = np.zeros(2 * int(4 * sigma + 1) + 1)
    impulse[len(impulse) // 2] = 1
    left = (gaussian_filter1d(impulse, sigma) ** 2).sum()  # of the noise's standard deviation
    rows, columns = np.indices(image.shape[1:], dtype=float)
    down, right = (gaussian_filter(random.standard_normal(rows.shape), sigma) * size / left for _ in range(2))
    return sampled(image, rows + down, columns + right)


def pixelate(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Shrink an image to 60, 50, 40, 30 or 25 percent of its sides and enlarge it again, both by boxes.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    height, width = image.shape[1:]
    share = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = _picture(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return _read(small.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Store an image as JPEG of quality 25, 18, 15, 10 or 7 and read it again.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    file = BytesIO()
    _picture(image).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return _read(Image.open(file))


def _picture(image: Pixels) -> Image.Image:
    pixels: NDArray[np.uint8] = np.round(image * 255).astype(np.uint8)
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _read(picture: Image.Image) -> Pixels:
    pixels: Pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
