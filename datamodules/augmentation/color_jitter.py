"""Brightness, contrast, saturation and hue changed by random factors in random order."""

from collections.abc import Sequence
from itertools import permutations
from typing import final

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from ._checks import check_images, interval
from .augmentation import Augmentation

__all__ = ["ColorJitter"]

ORDERS = list(permutations(range(4)))


@final
class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue of each image by factors of its own, in an order of its own.

    torchvision's `ColorJitter`, a draw of its own for each image.

    Args:
        brightness: Factor uniform in [max(0, 1 - brightness), 1 + brightness], or in the two given; 0 leaves it.
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
        ranges = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue], dtype=torch.float64)
        draws = uniform.double().cpu()
        factors = ranges[:, 0] + (ranges[:, 1] - ranges[:, 0]) * draws[:, :4]
        order = (draws[:, 4] * len(ORDERS)).long().tolist()
        changes = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        active = [tuple(pair) != neutral for pair, neutral in zip(ranges.tolist(), [(1, 1)] * 3 + [(0, 0)], strict=True)]
        result = images.clone()
        for position, (image, own, number) in enumerate(zip(images, factors.tolist(), order, strict=True)):
            for which in ORDERS[number]:
                if active[which]:
                    image = changes[which](image, own[which])
            result[position] = image
        return result


def _factors(what: str, value: float | Sequence[float]) -> tuple[float, float]:
    if isinstance(value, int | float):
        if value < 0:
            raise ValueError(f"ColorJitter: {what} must be at least 0, not {value}")
        value = (max(0.0, 1 - value), 1 + value)
    return interval("ColorJitter", what, value, 0.0, float("inf"))
