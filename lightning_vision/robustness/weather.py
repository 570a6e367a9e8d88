"""Corruptions by weather: snow, frost on the window, fog, and the sun.

Hendrycks and Dietterich 2019, arXiv:1903.12261; the severities are those of ImageNet-C but where a
higher one changed pixels less: snow 2, frost 4 and 5, fog 4 and how rough fog is; lengths in pixels of images of 224,
fewer in smaller ones (`_pixels.scale`). Each function takes one image, float32 `(C, H, W)` in 0..1, and the stream
of its draws; what it returns may leave 0..1, where `corrupt_images` cuts it.
"""

import numpy as np
from PIL import Image

from ._pixels import Pixels, blurred, sampled, scale, streak
from ._textures import clouds, crystals

__all__ = ["brightness", "fog", "frost", "snow"]

# Of red, green and blue, as they make grey (ITU-R BT.601), and as ice shows them.
LUMA: Pixels = np.array([0.299, 0.587, 0.114], dtype=np.float32)
ICE: Pixels = np.array([0.86, 0.94, 1.0], dtype=np.float32)


def snow(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Whiten an image and let streaks of snow fall over it, once as drawn and once turned by half.

    Flakes are a normal field (mean 0.1, 0.1, 0.55, 0.55, 0.55, deviation 0.3) on a grid 3, 2, 4, 4.5 or 2.5 times as
    coarse as the pixels, where it is above 0.5, 0.5, 0.9, 0.85 or 0.85, blurred along a line that falls.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Where flakes and the direction of their fall are drawn from.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    settings = (
        (0.10, 3.0, 0.50, 10, 4, 0.80),
        (0.10, 2.0, 0.50, 12, 4, 0.70),
        (0.55, 4.0, 0.90, 12, 8, 0.70),
        (0.55, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 2.5, 0.85, 12, 12, 0.55),
    )
    mean, grid, least, radius, sigma, kept = settings[severity - 1]
    # Drawn as for 224 pixels and shrunk, so that small images get as much snow.
    size = [round(side / scale(image)) for side in image.shape[1:]]
    line = streak(radius, sigma, random.uniform(-135, -45))
    field = mean + 0.3 * random.standard_normal([1, *(int(side / grid) + 2 for side in size)], dtype=np.float32)
    flakes = sampled(field, *(np.indices(size, dtype=float) / grid))
    flakes = blurred(np.clip(np.where(flakes < least, 0, flakes), 0, 1), line)
    flakes = np.asarray(Image.fromarray(flakes[0]).resize(image.shape[:0:-1], Image.Resampling.BOX))
    white = np.maximum(image, 1.5 * _grey(image) + 0.5)
    return np.asarray(kept * image + (1 - kept) * white + flakes + flakes[::-1, ::-1], dtype=np.float32)


def frost(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Look through a frozen window: ice, 40, 60, 70, 75 or 80 percent, over 100, 80, 70, 65 or 60 percent of an image.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Where the ice is drawn from; it is the same for all severities.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    kept, ice = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.75), (0.6, 0.8))[severity - 1]
    grey = crystals(image.shape[1], image.shape[2], random)[None]
    colour = ICE[:, None, None] if len(image) == 3 else ICE.mean()
    return np.asarray(kept * image + ice * grey * colour, dtype=np.float32)


def fog(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Add 1.5, 2, 2.5, 2.75 or 3 times a field of clouds to an image and scale it back to its brightest value.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Where the clouds are drawn from; they are the same for all severities.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    amount = (1.5, 2.0, 2.5, 2.75, 3.0)[severity - 1]
    brightest = image.max()
    veil = clouds(image.shape[1], image.shape[2], 1.7, random)
    return np.asarray((image + amount * veil) * brightest / (brightest + amount), dtype=np.float32)


def brightness(image: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Raise the brightest channel of each pixel by 0.1, 0.2, 0.3, 0.4 or 0.5, hue and saturation as they are.

    Args:
        image: float32 `(C, H, W)`, 0..1.
        severity: 1..5.
        random: Not asked.

    Reference: Hendrycks and Dietterich 2019, arXiv:1903.12261
    """
    value = image.max(0, keepdims=True)
    raised = np.minimum(value + np.float32((0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1]), 1)
    # Black has no hue: it becomes grey.
    return np.where(value > 0, image * (raised / np.where(value > 0, value, 1)), raised)


def _grey(image: Pixels) -> Pixels:
    return image if len(image) == 1 else np.tensordot(LUMA, image, 1)[None]
