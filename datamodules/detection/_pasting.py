"""Windows of images resized into places of a canvas, bilinear and antialiased, to the same bytes on every path.

A window or place is first row, first column, height and width, pixels, int64 `(B, 4)`.
"""

import numpy as np
import torch
from torch import Tensor

from ..augmentation._resize import line_weights, resize_into, rounded

__all__ = ["paste", "paste_by_slices", "paste_by_weights"]


def paste(canvas: Tensor, images: Tensor, windows: Tensor, places: Tensor) -> Tensor:
    """Cut a window out of each image and resize it into a place of its canvas.

    Args:
        canvas: uint8 `(B, C, H', W')`, contiguous; on a CPU it is written on.
        images: uint8 `(B, C, H, W)`, C at most 4; left alone.
        windows: Within the images, at least a pixel.
        places: Within the canvas; height 0 leaves it as it is.
    """
    by = paste_by_slices if images.device.type == "cpu" else paste_by_weights
    return by(canvas, images, windows, places)


def paste_by_slices(canvas: Tensor, images: Tensor, windows: Tensor, places: Tensor) -> Tensor:
    """`paste`, one image after the other, on the CPU."""
    room = np.empty(images.shape[2] * images.shape[3] + canvas.shape[2] * canvas.shape[3], np.uint32)
    work = zip(canvas.numpy(), images.numpy(), windows.tolist(), places.tolist(), strict=True)
    for sink, source, (top, left, height, width), (row, column, down, across) in work:
        window = source[:, top : top + height, left : left + width]
        place = sink[:, row : row + down, column : column + across]
        if window.shape == place.shape:
            np.copyto(place, window)
        elif down:
            resize_into(place, window, False, room)
    return canvas


def paste_by_weights(canvas: Tensor, images: Tensor, windows: Tensor, places: Tensor) -> Tensor:
    """`paste`, two products of matrices a batch, on any device."""
    (down, across), (high, wide) = images.shape[2:], canvas.shape[2:]
    top, left, height, width = windows.unbind(1)
    row, column, rows, columns = places.unbind(1)
    sideways, side_bits = line_weights(left, width, across, column, columns, wide)
    upright, up_bits = line_weights(top, height, down, row, rows, high)
    pixels = images.float()
    narrow = rounded(sideways[:, None], side_bits, lambda weights: pixels @ weights.mT)
    pasted = rounded(upright[:, None], up_bits, lambda weights: weights @ narrow).to(torch.uint8)
    beside, below = torch.arange(wide, device=images.device), torch.arange(high, device=images.device)
    in_columns = (beside >= column[:, None]) & (beside < (column + columns)[:, None])
    in_rows = (below >= row[:, None]) & (below < (row + rows)[:, None])
    return torch.where((in_rows[:, :, None] & in_columns[:, None, :])[:, None], pasted, canvas)
