"""From image files to the normalised batch that a network was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.images import read_image

__all__ = ["normalise", "read_batch"]


def read_batch(paths: Sequence[str | Path], preprocessing: Mapping[str, Any], device: torch.device) -> Tensor:
    """Images as the network wants them, `(B, C, H, W)` float32 on `device`.

    Args:
        paths: Image files of any mode and size.
        preprocessing: `channels`, `image_size` (H, W), `resize` ("crop" or "squash"), `mean` and `std` of
            pixels in 0..1.
        device: Where the pixels are scaled; bytes are moved there.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file is no image.
    """
    size = (preprocessing["image_size"][0], preprocessing["image_size"][1])
    pixels = [read_image(path, preprocessing["channels"], size, preprocessing["resize"]) for path in paths]
    return normalise(torch.stack(pixels).to(device), preprocessing["mean"], preprocessing["std"])


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(pixels / 255 - mean) / std` for uint8 `pixels` `(B, C, H, W)`, per channel, as float32."""
    scale = torch.tensor([1 / (255 * value) for value in std], device=pixels.device).view(-1, 1, 1)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=pixels.device).view(-1, 1, 1)
    return pixels * scale - shift
