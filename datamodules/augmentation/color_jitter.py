"""Brightness, contrast, saturation and hue changed by random factors in random order."""

from collections.abc import Sequence
from itertools import permutations
from typing import final

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_hue

from ._checks import check_images, interval
from ._luma import LUMA
from .augmentation import Augmentation

__all__ = ["ColorJitter"]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)
ORDERS = list(permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))


@final
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue of each image by factors of its own, in an order of its own.

    torchvision's `ColorJitter`, a draw of its own for each image. A changed image is `f x + (1 - f) y`, clamped to
    0..255 and rounded down, with y black for brightness, the mean of the grey image for contrast, the grey image for
    saturation.

    Args:
        brightness: Factor f uniform in [max(0, 1 - brightness), 1 + brightness], or in the two given; 0 leaves it.
        contrast: Likewise.
        saturation: Likewise; grey images have none.
        hue: Turn of the colour circle uniform in [-hue, hue], at most 0.5, or in the two given; 0 leaves it.

    Shape:
        uint8 `(B, C, H, W)` to the same.

    Raises:
        ValueError: A setting is negative or out of order; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> images = torch.full((2, 3, 32, 32), 128, dtype=torch.uint8)
        >>> ColorJitter(brightness=0.4)(images).shape
        torch.Size([2, 3, 32, 32])
    """

    draws = 5
    moves_pixels = False

    def __init__(
        self,
        brightness: float | Sequence[float] = 0.0,
        contrast: float | Sequence[float] = 0.0,
        saturation: float | Sequence[float] = 0.0,
        hue: float | Sequence[float] = 0.0,
    ) -> None:
        self.brightness = _factors("brightness", brightness)
        self.contrast = _factors("contrast", contrast)
        self.saturation = _factors("saturation", saturation)
        turns = (-hue, hue) if isinstance(hue, int | float) else hue
        self.hue = interval("ColorJitter", "hue", turns, -0.5, 0.5)

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("ColorJitter", images, uniform, self.draws)
        factors, order = self.factors(uniform, images.shape[1])
        if images.device.type == "cpu" or self.hue != (0.0, 0.0):
            return jitter_by_image(images, factors, order)
        return jitter_by_batch(images, factors, order)

    def factors(self, uniform: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Factors of brightness, contrast, saturation and the turn of hue, and the order in which they act.

        Args:
            uniform: What `apply` takes, `(B, 5)`.
            channels: Of the images; with one there is no saturation to change.

        Returns:
            float64 `(B, 4)` and int64 `(B, 4)`, which of the four acts first, second, third and last.
        """
        ranges = uniform.new_tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        draws = uniform.double()
        factors = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * draws[:, :4]
        if channels == 1:
            factors[:, SATURATION] = NEUTRAL[SATURATION]
        orders = torch.tensor(ORDERS, device=uniform.device)
        return factors, orders[(draws[:, 4] * len(ORDERS)).long()]


def jitter_by_image(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Jitter one image after the other.

    Args:
        images: uint8 `(B, C, H, W)`; left alone.
        factors: What `ColorJitter.factors` gives.
        order: Likewise.
    """
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    # One image in float32 stays in the cache from its first change to its last.
    pixels = torch.empty(images.shape[1:], device=images.device)
    for image, sink, own, steps in zip(images, result, factors.tolist(), order.tolist(), strict=True):
        pixels.copy_(image)
        for step in steps:
            factor = own[step]
            if factor == NEUTRAL[step]:
                continue
            if step == HUE:
                pixels.copy_(adjust_hue(pixels.to(torch.uint8), factor))
                continue
            # The operations of torchvision, in its order, so that every rounding is the same.
            grey = None if step == BRIGHTNESS else _grey(pixels, step)
            pixels.mul_(factor)
            if grey is not None:
                pixels.add_(grey, alpha=1 - factor)
            pixels.clamp_(0, 255).floor_()
        # Straight to bytes is several times as slow.
        sink.copy_(pixels.int())
    return result


def jitter_by_batch(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """`jitter_by_image` but for the hue, all images at once: on any device, without waiting for it."""
    pixels = images.float()
    for step in order.unbind(1):
        step = step.view(-1, 1, 1, 1)
        factor = factors.gather(1, step[:, :, 0, 0]).view(-1, 1, 1, 1)
        factor = torch.where(step == HUE, 1.0, factor)
        grey = torch.where(step == CONTRAST, _grey(pixels, CONTRAST), _grey(pixels, SATURATION))
        grey = torch.where(step == BRIGHTNESS, 0.0, grey)
        # torch multiplies and adds with one rounding, as float64 does here.
        other = (1 - factor).float().double() * grey
        pixels = ((pixels * factor.float()).double() + other).float().clamp_(0, 255).floor_()
    return pixels.to(torch.uint8)


def _grey(pixels: Tensor, step: int) -> Tensor:
    """The grey image in whole numbers, or for the contrast its mean.

    Args:
        pixels: float32 `(..., C, H, W)`, whole numbers.
        step: `CONTRAST` or `SATURATION`.

    Returns:
        float32 `(..., 1, H, W)`, for the contrast `(..., 1, 1, 1)`.
    """
    if pixels.shape[-3] == 1:
        grey = pixels
    else:
        red, green, blue = pixels.split(1, dim=-3)
        grey = red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()
    return grey.mean((-3, -2, -1), keepdim=True, dtype=torch.float64).float() if step == CONTRAST else grey


def _factors(what: str, value: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(value, int | float):
        if value < 0:
            raise ValueError(f"ColorJitter: {what} is {value}; give at least 0.")
        value = (max(0.0, 1 - value), 1 + value)
    return interval("ColorJitter", what, value, 0.0, float("inf"))
