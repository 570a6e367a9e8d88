"""What every augmentation asks of its images, numbers and settings."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_images", "interval", "whole", "window"]


def check_images(name: str, images: Tensor, uniform: Tensor, draws: int) -> None:
    """Refuse what is no batch of bytes, or comes with the wrong numbers.

    Args:
        name: Who refuses.
        images: Should be uint8 `(B, 1 or 3, H, W)`.
        uniform: Should be `(B, draws)`.
        draws: Uniform numbers that an image needs.

    Raises:
        ValueError: they are not.
    """
    if images.dtype != torch.uint8:
        raise ValueError(
            f"{name}: images is {str(images.dtype).removeprefix('torch.')}; give bytes (uint8, 0..255), as they are "
            "before they are normalised."
        )
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{name}: images is of shape {tuple(images.shape)}; give (B, C, H, W) with C 1 or 3.")
    if uniform.shape != (len(images), draws):
        raise ValueError(
            f"{name}: uniform is of shape {tuple(uniform.shape)}; give {draws} numbers for each of the {len(images)} "
            "images."
        )


def interval(name: str, what: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`value` as an ordered pair within `low` .. `high`.

    Raises:
        ValueError: it is not.
    """
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise ValueError(f"{name}: {what} is {list(value)}; give two numbers in order, from {low:g} to {high:g}.")
    return float(value[0]), float(value[1])


def window(name: str, size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """Height and width of a window given as one side or both; None stays None.

    Raises:
        ValueError: a side is no number of pixels.
    """
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(f"{name}: size is {size!r}; give one side or height and width, pixels, at least 1.")
    return sides[0], sides[1]


def whole(name: str, what: str, value: object, low: int, high: int | None = None, otherwise: str = "") -> None:
    """Refuse what is no whole number from `low` to `high`; the message says what could be given `otherwise`.

    Raises:
        ValueError: it is not.
    """
    if type(value) is not int or value < low or (high is not None and value > high):
        wanted = f"of at least {low}" if high is None else f"from {low} to {high}"
        instead = f", or {otherwise}" if otherwise else ""
        raise ValueError(f"{name}: {what} is {value!r}; give a whole number {wanted}{instead}.")
