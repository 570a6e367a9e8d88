"""Boxes of images resized, bilinear and antialiased, to bytes that equal torch's on every path.

torch resizes bytes on the CPU in whole numbers: triangle weights, rounded to as many bits as fit the largest of them
into 15, first along rows, then along columns, rounded to bytes after each.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize_boxes", "resize_by_slices", "resize_by_weights"]


def resize_boxes(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image, resize it and mirror some left to right.

    Args:
        images: uint8 `(B, C, H, W)`, C at most 4; left alone.
        boxes: First row, first column, height and width, pixels, int64 `(B, 4)`.
        flip: Which results to mirror, bool `(B,)`.
        size: Height and width of the results, pixels.

    Returns:
        uint8 `(B, C, *size)`.
    """
    resize = resize_by_slices if images.device.type == "cpu" else resize_by_weights
    return resize(images, boxes, flip, size)


def resize_by_slices(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize_boxes`, one image after the other, on the CPU."""
    result = images.new_empty(*images.shape[:2], *size)
    room, words = np.empty(images.shape[2] * images.shape[3], np.uint32), np.empty(size, np.uint32)
    work = zip(images.numpy(), result.numpy(), boxes.tolist(), flip.tolist(), strict=True)
    for source, sink, (top, left, height, width), mirrored in work:
        box = source[:, top : top + height, left : left + width]
        # Four bytes a pixel, which torch resizes fastest; whole words are packed faster than bytes are interleaved.
        packed = room[: height * width].reshape(height, width)
        np.copyto(packed, box[-1])
        for plane in box[-2::-1]:
            np.left_shift(packed, 8, out=packed)
            np.bitwise_or(packed, plane, out=packed)
        pixels = torch.from_numpy(packed.view(np.uint8)).view(1, height, width, 4).permute(0, 3, 1, 2)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        resized = pixels.permute(0, 2, 3, 1).contiguous().numpy().view(np.uint32)[0, :, :, 0]
        np.copyto(words, resized[:, ::-1] if mirrored else resized)
        for plane in sink:
            np.copyto(plane, words, casting="unsafe")
            np.right_shift(words, 8, out=words)
    return result


def resize_by_weights(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize_boxes`, two products of matrices a batch, on any device."""
    down, across = images.shape[2:]
    top, left, height, width = boxes.unbind(1)
    columns, column_bits = _weights(left, width, across, size[1])
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    rows, row_bits = _weights(top, height, down, size[0])
    pixels = images.float()
    narrow = _rounded(columns[:, None], column_bits, lambda weights: pixels @ weights.mT)
    return _rounded(rows[:, None], row_bits, lambda weights: weights @ narrow).to(torch.uint8)


def _weights(first: Tensor, length: Tensor, here: int, count: int) -> tuple[Tensor, Tensor]:
    """Weights of the `here` pixels of a line in each of `count` resized ones, whole numbers, and their bits.

    Args:
        first: First pixel of the box, int64 `(B,)`.
        length: Its pixels, int64 `(B,)`.

    Returns:
        float32 `(B, count, here)`, below 2^15, and int32 `(B,)`; a line of weights adds up to about 2^bits.
    """
    scale = length.double() / count
    support = scale.clamp(min=1.0)[:, None]
    centre = scale[:, None] * (torch.arange(count, device=first.device) + 0.5)
    # Pixels from which the triangle is summed, counted from the box's edge; int truncates as C++ does.
    begin = (centre - support + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + support + 0.5).long(), length[:, None])
    pixel = torch.arange(here, device=first.device) - first[:, None]
    triangle = 1 - ((pixel[:, None] - centre[..., None] + 0.5) / support[..., None]).abs()
    inside = (pixel[:, None] >= begin[..., None]) & (pixel[:, None] < end[..., None])
    weight = torch.where(inside, triangle.clamp(min=0), 0.0)
    weight = weight / weight.sum(2, keepdim=True)
    steps = torch.arange(22, device=first.device)
    too_large = (0.5 + weight.amax((1, 2))[:, None] * 2.0 ** (steps + 1)).long() >= 2**15
    bits = torch.where(too_large.any(1), too_large.int().argmax(1), 22)
    return (weight * 2.0 ** bits[:, None, None] + 0.5).floor().float(), bits.int()


def _rounded(weights: Tensor, bits: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """What `weigh` makes of `weights` over 2^bits, rounded to bytes in float32."""
    # In parts of 8 and 7 bits all products and sums are whole numbers that float32 holds, and TF32 their factors.
    high = (weights / 128).floor()
    total = weigh(high).int() * 128 + weigh(weights - 128 * high).int()
    shift = bits.view(-1, 1, 1, 1)
    return ((total + (1 << (shift - 1))) >> shift).clamp(0, 255).float()
