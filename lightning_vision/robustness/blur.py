"""Corruptions by blur: out of focus, behind frosted glass, in movement, while zooming in.

Hendrycks and Dietterich 2019, arXiv:1903.12261; the severities are those of ImageNet-C, lengths in pixels of images of
224, fewer in smaller ones (`_pixels.scale`). Each function takes one image, float32 `(C, H, W)` in 0..1, and the stream
of its draws.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from ._pixels import Pixels, blurred, sampled, scale, spread, streak

__all__ = ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"]


def defocus_blur(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Average an image over discs of radius 3, 4, 6, 8 or 10 pixels.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked; the blur is the same for all images.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    return blurred(image, _disc((3, 4, 6, 8, 10)[severity - 1] * scale(image)))


def glass_blur(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Look through frosted glass: pixels move by up to 1 to 4, once to three times, between two Gaussian blurs.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5: standard deviation 0.7, 0.9, 1, 1.1, 1.5 pixels; reach 1, 2, 2, 3, 4; 2, 1, 3, 2, 2 times.
        random: Where the movements are drawn from.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    settings = ((0.7, 1.0, 2), (0.9, 2.0, 1), (1.0, 2.0, 3), (1.1, 3.0, 2), (1.5, 4.0, 2))
    sigma, reach, times = settings[severity - 1]
    sigma, reach = sigma * scale(image), reach * scale(image)
    rows, columns = np.indices(image.shape[1:], dtype=float)
    found = gaussian_filter(image, (0, sigma, sigma), mode="nearest")
    for _ in range(times):
        down, right = random.uniform(-reach, reach, (2, *rows.shape))
        found = sampled(found, rows + down, columns + right)
    return np.asarray(gaussian_filter(found, (0, sigma, sigma), mode="nearest"))


def motion_blur(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Average an image along a line that is drawn within 45 degrees of the horizontal and fades along its length.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5: radius 10, 15, 15, 15, 20 pixels, standard deviation 3, 5, 8, 12, 15.
        random: Where the direction is drawn from.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    return blurred(image, streak(radius, sigma, random.uniform(-45, 45), scale(image)))


def zoom_blur(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Average an image with itself enlarged about its centre step by step, by up to 10, 15, 20, 24 or 30 percent.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked; the blur is the same for all images.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    most, step = ((0.10, 0.01), (0.15, 0.01), (0.20, 0.02), (0.24, 0.02), (0.30, 0.03))[severity - 1]
    zooms = 1 + step * np.arange(round(most / step) + 1)
    total = image.copy()
    for zoom in zooms:
        down, right = (_enlarging(side, float(zoom)) for side in image.shape[1:])
        total += down @ image @ right.T
    return total / np.float32(len(zooms) + 1)


@lru_cache
def _disc(radius: float) -> Pixels:
    fine = np.linspace(-1, 1, 65)
    rows, columns = (axis.ravel() for axis in np.meshgrid(fine, fine, indexing="ij"))
    inside = rows**2 + columns**2 <= 1
    return spread(rows[inside] * radius, columns[inside] * radius, np.ones(inside.sum()))


@lru_cache(maxsize=256)
def _enlarging(side: int, zoom: float) -> Pixels:
    """`(side, side)`: what each of the enlarged pixels of a line is made of."""
    place = ((np.arange(side) + 0.5 - side / 2) / zoom + side / 2 - 0.5)[:, None]
    return np.maximum(0, 1 - np.abs(place - np.arange(side))).astype(np.float32)
