"""What the corruptions share: lengths that follow the image, blurs by any kernel, values between pixels."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.signal import fftconvolve

__all__ = ["Pixels", "blurred", "sampled", "scale", "spread", "streak"]

Pixels = NDArray[np.float32]

# Published lengths are pixels of images of this side.
SIDE = 224


def scale(image: Pixels) -> float:
    """Pixels of `image` `(C, H, W)` for a published one: less than 1 where its shorter side is below 224, else 1.

    So a small image is corrupted as a large one of the same scene is, and CIFAR-10-C's lengths for 32 pixels are about
    what comes of ImageNet-C's.
    """
    return min(1.0, min(image.shape[1:]) / SIDE)


def spread(rows: NDArray[np.float64], columns: NDArray[np.float64], weights: NDArray[np.float64]) -> Pixels:
    """A kernel `(2R + 1, 2R + 1)` of sum 1 that averages an image over places between its pixels.

    Each place is shared by the four pixels around it, as in bilinear interpolation, so that lengths below a pixel blur
    a little instead of not at all.

    Args:
        rows: Places from the centre, pixels.
        columns: Likewise.
        weights: Of each place, at least 0.
    """
    radius = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max())))
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    top, left = np.floor(rows), np.floor(columns)
    for down in (0, 1):
        for right in (0, 1):
            share = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
            place = (top + down + radius).astype(int), (left + right + radius).astype(int)
            np.add.at(kernel, place, share * weights)
    return np.asarray(kernel[:-1, :-1] / weights.sum(), dtype=np.float32)


def streak(radius: float, sigma: float, angle: float, factor: float = 1.0) -> Pixels:
    """Kernel of a movement that fades: 2 radius + 1 places in a row, weighted by half a Gaussian, mean at the centre.

    Args:
        radius: Half the length, published pixels.
        sigma: Of the Gaussian, published pixels.
        angle: Direction, degrees from the rows' axis.
        factor: Pixels for a published one.
    """
    along = np.arange(2 * radius + 1, dtype=float)
    weights = np.exp(-(along**2) / (2 * sigma**2))
    # Off its mean the kernel would move what is in the image, and boxes would no longer fit.
    along = (along - np.average(along, weights=weights)) * factor
    return spread(along * np.sin(np.deg2rad(angle)), along * np.cos(np.deg2rad(angle)), weights)


def blurred(image: Pixels, kernel: Pixels) -> Pixels:
    """`image` `(C, H, W)` averaged by `kernel`; beyond its edges it is its mirror image."""
    pad = kernel.shape[0] // 2
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    return np.asarray(fftconvolve(padded, kernel[None, ::-1, ::-1], mode="valid", axes=(1, 2)))


def sampled(image: Pixels, rows: NDArray[np.float64], columns: NDArray[np.float64]) -> Pixels:
    """`image` `(C, H, W)` at places between its pixels, bilinear; beyond its edges it is its mirror image.

    Args:
        image: What is looked at.
        rows: Places `(H', W')`, pixels, 0 the centre of the first row.
        columns: Likewise.
    """
    return np.stack([map_coordinates(channel, (rows, columns), order=1, mode="mirror") for channel in image])
