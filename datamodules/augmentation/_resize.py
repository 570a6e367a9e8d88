"""Boxes of images resized, bilinear and antialiased, to bytes that equal torch's on every path.

torch resizes bytes on the CPU in whole numbers: triangle weights, rounded to as many bits as fit the largest of them
into 15, first along rows, then along columns, rounded to bytes after each.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["line_weights", "resize_boxes", "resize_by_slices", "resize_by_weights", "resize_into", "rounded"]


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
    room = np.empty(images.shape[2] * images.shape[3] + size[0] * size[1], np.uint32)
    work = zip(images.numpy(), result.numpy(), boxes.tolist(), flip.tolist(), strict=True)
    for source, sink, (top, left, height, width), mirrored in work:
        resize_into(sink, source[:, top : top + height, left : left + width], mirrored, room)
    return result


def resize_into(sink: np.ndarray, box: np.ndarray, mirrored: bool, room: np.ndarray) -> None:
    """Write one box `(C, h, w)`, C at most 4, resized and perhaps mirrored, into `sink` `(C, H, W)`.

    Args:
        sink: uint8, any strides.
        box: uint8, any strides; left alone.
        mirrored: Left to right.
        room: uint32 `(h * w + H * W,)` or more, to work in.
    """
    height, width = box.shape[1:]
    size = sink.shape[1:]
    # Four bytes a pixel, which torch resizes fastest; whole words are packed faster than bytes are interleaved.
    packed = room[: height * width].reshape(height, width)
    np.copyto(packed, box[-1])
    for plane in box[-2::-1]:
        np.left_shift(packed, 8, out=packed)
        np.bitwise_or(packed, plane, out=packed)
    pixels = torch.from_numpy(packed.view(np.uint8)).view(1, height, width, 4).permute(0, 3, 1, 2)
    pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
    resized = pixels.permute(0, 2, 3, 1).contiguous().numpy().view(np.uint32)[0, :, :, 0]
    words = room[height * width : height * width + size[0] * size[1]].reshape(size)
    np.copyto(words, resized[:, ::-1] if mirrored else resized)
    for plane in sink:
        np.copyto(plane, words, casting="unsafe")
        np.right_shift(words, 8, out=words)


def resize_by_weights(images: Tensor, boxes: Tensor, flip: Tensor, size: tuple[int, int]) -> Tensor:
    """`resize_boxes`, two products of matrices a batch, on any device."""
    down, across = images.shape[2:]
    top, left, height, width = boxes.unbind(1)
    start, counts = torch.zeros_like(top), boxes.new_tensor(size).expand(len(boxes), 2)
    columns, column_bits = line_weights(left, width, across, start, counts[:, 1], size[1])
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    rows, row_bits = line_weights(top, height, down, start, counts[:, 0], size[0])
    pixels = images.float()
    narrow = rounded(columns[:, None], column_bits, lambda weights: pixels @ weights.mT)
    return rounded(rows[:, None], row_bits, lambda weights: weights @ narrow).to(torch.uint8)


def line_weights(
    first: Tensor, length: Tensor, here: int, start: Tensor, count: Tensor, side: int
) -> tuple[Tensor, Tensor]:
    """Weights of the `here` pixels of a line in each of `side` others, whole numbers, and their bits.

    Args:
        first: First pixel of the box, int64 `(B,)`.
        length: Its pixels, int64 `(B,)`.
        here: Pixels of the line.
        start: First of the pixels that the box is resized to, int64 `(B,)`; those before have no weights.
        count: How many it is resized to, int64 `(B,)`; those after have no weights.
        side: Pixels of the line of results.

    Returns:
        float32 `(B, side, here)`, below 2^15, and int32 `(B,)`; a line of weights adds up to about 2^bits, or to 0.
    """
    scale = length.double() / count
    support = scale.clamp(min=1.0)[:, None]
    result = torch.arange(side, device=first.device) - start[:, None]
    centre = scale[:, None] * (result + 0.5)
    # Pixels from which the triangle is summed, counted from the box's edge; int truncates as C++ does.
    begin = (centre - support + 0.5).long().clamp(min=0)
    end = torch.minimum((centre + support + 0.5).long(), length[:, None])
    pixel = torch.arange(here, device=first.device) - first[:, None]
    triangle = 1 - ((pixel[:, None] - centre[..., None] + 0.5) / support[..., None]).abs()
    inside = (pixel[:, None] >= begin[..., None]) & (pixel[:, None] < end[..., None])
    inside = inside & ((result >= 0) & (result < count[:, None]))[..., None]
    weight = torch.where(inside, triangle.clamp(min=0), 0.0)
    total = weight.sum(2, keepdim=True)
    weight = weight / torch.where(total > 0, total, 1.0)
    steps = torch.arange(22, device=first.device)
    too_large = (0.5 + weight.amax((1, 2))[:, None] * 2.0 ** (steps + 1)).long() >= 2**15
    bits = torch.where(too_large.any(1), too_large.int().argmax(1), 22)
    return (weight * 2.0 ** bits[:, None, None] + 0.5).floor().float(), bits.int()


def rounded(weights: Tensor, bits: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """What `weigh` makes of `weights` over 2^bits, rounded to bytes in float32."""
    # In parts of 8 and 7 bits all products and sums are whole numbers that float32 holds, and TF32 their factors.
    high = (weights / 128).floor()
    total = weigh(high).int() * 128 + weigh(weights - 128 * high).int()
    shift = bits.view(-1, 1, 1, 1)
    return ((total + (1 << (shift - 1))) >> shift).clamp(0, 255).float()
