"""Boxes cut out of images and resized: torchvision's `resized_crop` and flips, a box an image."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._draws import Array
from ._products import multiply

__all__ = ["crop_and_resize", "resize_by_image", "resize_by_weights", "resize_weights"]

# Pixels of an image or of a view from which torch's own resizing of one image after the other is faster on the CPU.
LARGE = 48 * 48


def crop_and_resize(
    image: Tensor, boxes: Array, flip: Array, vertical_flip: Array, size: tuple[int, int], antialias: bool = True
) -> Tensor:
    """Cut a box out of each image, resize it bilinearly and mirror some.

    Args:
        image: float32 `(B, C, H, W)`; left alone.
        boxes: First row, first column, height and width, pixels, int64 `(B, 4)`.
        flip: Which results to mirror left to right, bool `(B,)`.
        vertical_flip: Which to mirror top to bottom, bool `(B,)`.
        size: Height and width of the results, pixels.
        antialias: Average over what a pixel covers where the box is made smaller.

    Returns:
        float32 `(B, C, *size)`.
    """
    large = max(size[0] * size[1], image.shape[2] * image.shape[3]) > LARGE
    resize = resize_by_image if large and image.device.type == "cpu" else resize_by_weights
    return resize(image, boxes, flip, vertical_flip, size, antialias)


def resize_by_image(
    image: Tensor, boxes: Array, flip: Array, vertical_flip: Array, size: tuple[int, int], antialias: bool
) -> Tensor:
    """`crop_and_resize`, one image after the other by torch."""
    result = image.new_empty(*image.shape[:2], *size)
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        box = image[number : number + 1, :, top : top + height, left : left + width]
        # A box that grows has no antialias; torch's way without is the faster one.
        smooth = antialias and (height > size[0] or width > size[1])
        resized = F.interpolate(box, size, mode="bilinear", align_corners=False, antialias=smooth)
        axes = [axis for axis, turned in ((2, vertical_flip[number]), (3, flip[number])) if turned]
        result[number : number + 1] = resized.flip(axes) if axes else resized
    return result


def resize_by_weights(
    image: Tensor, boxes: Array, flip: Array, vertical_flip: Array, size: tuple[int, int], antialias: bool
) -> Tensor:
    """`crop_and_resize`, two products of matrices for all images, on any device."""
    down, across = image.shape[2:]
    columns = resize_weights(boxes[:, 1], boxes[:, 3], across, size[1], flip, antialias, image.device)
    rows = resize_weights(boxes[:, 0], boxes[:, 2], down, size[0], vertical_flip, antialias, image.device)
    return multiply(rows, image, columns)


def resize_weights(
    first: Array, length: Array, here: int, side: int, flip: Array, antialias: bool, device: torch.device
) -> Tensor:
    """Weights of the `here` pixels of a line in each of `side` pixels, to which a part of the line is resized.

    The weight is a triangle of the distance between the centres: as wide as two pixels of the line or, with antialias,
    two of the result's if those are wider. Each line of weights adds up to 1.

    Args:
        first: First pixel of the part, int64 `(B,)`.
        length: Its pixels, int64 `(B,)`.
        here: Pixels of the line.
        side: Pixels of the result.
        flip: Whether the result is mirrored, bool `(B,)`.
        antialias: See above.
        device: Where the weights are needed.

    Returns:
        float32 `(B, side, here)`.
    """
    # Counted from the part's first pixel, in float32, so that centres are rounded as torch rounds them.
    place = np.arange(side, dtype=np.float32)
    place = np.where(flip[:, None], side - 1 - place, place)
    scale = (length.astype(np.float32) / np.float32(side))[:, None]
    own = np.arange(here, dtype=np.float32) - first[:, None].astype(np.float32)
    # Far away where there is no pixel of the part.
    own = np.where((own >= 0) & (own < length[:, None]), own + np.float32(0.5), np.float32(1e6))
    centre, pixel = (torch.from_numpy(it).to(device, non_blocking=True) for it in (scale * (place + 0.5), own))
    weights = (pixel[:, None] - centre[..., None]).abs_()
    if antialias and (scale > 1).any():
        weights.div_(torch.from_numpy(np.maximum(scale, 1)).to(device, non_blocking=True)[..., None])
    weights = weights.neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(2, keepdim=True))
