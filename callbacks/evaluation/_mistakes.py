"""The most confident mistakes among what a classifier answered, with their images.

On the CPU a batch without a mistake worth keeping touches no image; elsewhere nothing waits for the device.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._metadata import Pixels, as_pixels

__all__ = ["Mistakes", "resized"]

SIDE = 96  # pixels of the longer side of a kept image, at most


class Mistakes:
    """Keeps the W most confident of the mistakes that `add` was given.

    Args:
        worst: W.
        pixels: With which images were normalised; without it each image is stretched from its least to its largest.
        device: Where answers lie.
    """

    def __init__(self, worst: int, pixels: Pixels | None, device: torch.device) -> None:
        self.worst, self.pixels = worst, pixels
        self._scores = torch.full((worst,), -1.0, device=device)
        self._rows = torch.full((worst, 2), -1, device=device)
        self._images: Tensor | None = None

    def add(self, image: Any, score: Tensor, rows: Tensor) -> None:
        """See what of a batch is to be kept.

        Args:
            image: Images `(B, C, H, W)`; anything else is not kept.
            score: Confidence of each mistake `(B,)`, -1 where there is none.
            rows: What is to be known of each, int64 `(B, 2)`.
        """
        best, at = score.topk(min(self.worst, len(score)))
        if score.device.type == "cpu":
            # Elsewhere asking how many they are would wait for the device.
            better = best > self._scores[-1]
            best, at = best[better], at[better]
            if not len(best):
                return
        merged = torch.cat([self._scores, best]).topk(self.worst)
        self._scores = merged.values
        self._rows = torch.cat([self._rows, rows[at]])[merged.indices]
        if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1]:
            small = _thumbnails(image[at], self.pixels)
            if self._images is None:
                self._images = small.new_zeros(self.worst, *small.shape[1:])
            small = resized(small, self._images.shape[2:])
            self._images = torch.cat([self._images, small])[merged.indices]

    def kept(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Confidence `(W',)`, rows `(W', 2)` and images uint8 `(W', C, h, w)`, most confident first, on the CPU."""
        there = self._scores.cpu() >= 0
        images = None if self._images is None else self._images.cpu()[there]
        return self._scores.cpu()[there], self._rows.cpu()[there], images


def _thumbnails(images: Tensor, pixels: Pixels | None) -> Tensor:
    """Images `(W, C, H, W')` as uint8 of one or three channels and at most `SIDE` pixels a side."""
    height, width = images.shape[2:]
    shrink = min(1.0, SIDE / max(height, width))
    size = torch.Size([max(1, round(height * shrink)), max(1, round(width * shrink))])
    return resized(as_pixels(images, pixels), size)


def resized(images: Tensor, size: torch.Size) -> Tensor:
    """Images `(W, C, H, W')` of type uint8 at this height and width."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)
