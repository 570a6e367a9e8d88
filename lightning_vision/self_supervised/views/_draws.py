"""All that is random about a view, drawn from uniform numbers in the distributions of torchvision's transforms."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .view import View

__all__ = ["DRAWS", "NEUTRAL", "Draw", "draw_boxes", "draw_view"]

# A box is tried ten times, as in torchvision.
ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 14
"""Uniform numbers that one view of one image takes, whatever its settings."""

# Factors of brightness, contrast and saturation and the shift of hue that change nothing.
NEUTRAL = np.array([1, 1, 1, 0], np.float32)
ORDERS = np.array(list(permutations(range(4))))

Array = NDArray[Any]


@dataclass(frozen=True)
class Draw:
    """What happens to each image of a batch; known on the CPU, so that no device is waited for.

    Args:
        boxes: First row, first column, height and width of what is cut out, pixels, int64 `(B, 4)`.
        flip: Exchange left and right, bool `(B,)`.
        vertical_flip: Exchange top and bottom, bool `(B,)`.
        factors: Of brightness, contrast and saturation (1 is neutral) and the shift of hue in turns (0 is), float32
            `(B, 4)`.
        order: Which of these four comes first, second, third and last, int64 `(B, 4)`.
        grey: Take the colours away, bool `(B,)`.
        blur: Blur, bool `(B,)`.
        sigma: Standard deviation of the blur, pixels, float32 `(B,)`.
        solarise: Invert what is bright, bool `(B,)`.
    """

    boxes: Array
    flip: Array
    vertical_flip: Array
    factors: Array
    order: Array
    grey: Array
    blur: Array
    sigma: Array
    solarise: Array

    def __getitem__(self, part: slice | Array) -> Self:
        return type(self)(*(numbers[part] for numbers in vars(self).values()))


def draw_view(view: View, uniform: Array, height: int, width: int) -> Draw:
    """What a kind of view does to images of `height` and `width` pixels.

    Args:
        view: The kind.
        uniform: In [0, 1), float64 `(B, DRAWS)`: area and shape of ten boxes, place of the box (2), both flips, whether
            to jitter, brightness, contrast, saturation, hue, their order, grey, blur, sigma, solarise.
        height: Of the images, pixels.
        width: Of the images, pixels.
    """
    tries, place = uniform[:, : 2 * ATTEMPTS], uniform[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2]
    flip, vertical, jitter, *factors, order, grey, blur, sigma, solarise = uniform[:, 2 * ATTEMPTS + 2 :].T
    if view.crop is None:
        boxes = np.tile([0, 0, height, width], (len(uniform), 1))
    else:
        boxes = draw_boxes(tries, place, height, width, view.crop, view.ratio)
    strengths = np.array([view.brightness, view.contrast, view.saturation, view.hue])
    low, high = np.maximum(NEUTRAL - strengths, [0, 0, 0, -1]), NEUTRAL + strengths
    drawn = low + (high - low) * np.stack(factors, 1)
    return Draw(
        boxes=boxes,
        flip=flip < view.flip,
        vertical_flip=vertical < view.vertical_flip,
        factors=np.where((jitter < view.jitter)[:, None], drawn, NEUTRAL).astype(np.float32),
        order=ORDERS[(order * len(ORDERS)).astype(int)],
        grey=grey < view.grey,
        blur=blur < view.blur,
        sigma=(view.blur_sigma[0] + (view.blur_sigma[1] - view.blur_sigma[0]) * sigma).astype(np.float32),
        solarise=solarise < view.solarise,
    )


def draw_boxes(
    uniform: Array, place: Array, height: int, width: int, area: Sequence[float], ratio: Sequence[float]
) -> Array:
    """Boxes as torchvision's `RandomResizedCrop` draws them: ten attempts, then the largest centred one allowed.

    The area is uniform, the shape uniform in its logarithm (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
        uniform: In [0, 1), `(B, 20)`: for each attempt one for the area and one for the shape.
        place: In [0, 1), `(B, 2)`: for row and column.
        height: Of the images, pixels.
        width: Of the images, pixels.
        area: Smallest and largest area, fractions of the image's.
        ratio: Smallest and largest width over height.

    Returns:
        First row, first column, height and width, int64 `(B, 4)`.
    """
    pixels = height * width * (area[0] + (area[1] - area[0]) * uniform[:, 0::2])
    shape = ratio[0] * (ratio[1] / ratio[0]) ** uniform[:, 1::2]
    # Rounded half to even, as Python's round does.
    across, down = np.rint(np.sqrt(pixels * shape)), np.rint(np.sqrt(pixels / shape))
    fits = (across >= 1) & (across <= width) & (down >= 1) & (down <= height)
    each, first, found = np.arange(len(uniform)), fits.argmax(1), fits.any(1)
    nearest = min(max(width / height, ratio[0]), ratio[1])
    down = np.where(found, down[each, first], min(height, round(width / nearest)))
    across = np.where(found, across[each, first], min(width, round(height * nearest)))
    top = np.where(found, place[:, 0] * (height - down + 1), (height - down) / 2)
    left = np.where(found, place[:, 1] * (width - across + 1), (width - across) / 2)
    return np.stack([top, left, down, across], 1).astype(int)
