"""Corruptions by noise: of sensors in the dark, of few photons, of broken pixels.

Hendrycks and Dietterich 2019, arXiv:1903.12261; the severities are those of ImageNet-C. Each function takes one image,
float32 `(C, H, W)` in 0..1, and the stream of its draws; what it returns may leave 0..1, where `corrupt_images` cuts.
"""

import numpy as np

from ._pixels import Pixels

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise"]


def gaussian_noise(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Add normal noise of standard deviation 0.08, 0.12, 0.18, 0.26 or 0.38 to each value of an image.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Its draws are the same for all severities.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    sigma = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return image + np.float32(sigma) * random.standard_normal(image.shape, dtype=np.float32)


def shot_noise(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Count photons: each value x of an image becomes Poisson(x n) / n with n = 60, 25, 12, 5 or 3.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Where the counts are drawn from.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    photons = (60, 25, 12, 5, 3)[severity - 1]
    return np.asarray(random.poisson(image * photons) / photons, dtype=np.float32)


def impulse_noise(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Set 3, 6, 9, 17 or 27 percent of an image's values to 0 or 1, as many to each.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: What is hit at a severity is hit at the next one too.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    share = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    drawn = random.random(image.shape, dtype=np.float32)
    return np.where(drawn < share / 2, 0, np.where(drawn >= 1 - share / 2, 1, image)).astype(np.float32)
