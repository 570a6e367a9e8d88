"""From image files to the normalised batch that a network was trained on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.images import normalise, read_image

__all__ = ["read_batch"]


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
