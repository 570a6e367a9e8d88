"""Images multiplied with weights of their rows and of their columns."""

import torch
from torch import Tensor

__all__ = ["multiply"]

# Images at a time on the CPU, so that they stay in its cache between the two products.
PART = 32


def multiply(rows: Tensor, image: Tensor, columns: Tensor) -> Tensor:
    """`rows @ image @ columns.T`, a pair of matrices an image.

    Args:
        rows: float32 `(B, h, H)`.
        image: float32 `(B, C, H, W)`.
        columns: float32 `(B, w, W)`.

    Returns:
        float32 `(B, C, h, w)`.
    """
    count, channels, height, width = image.shape
    size = (rows.shape[1], columns.shape[1])
    lines, result = image.reshape(count, channels * height, width), image.new_empty(count, channels, *size)
    at_once = PART if image.device.type == "cpu" else count
    for start in range(0, count, at_once):
        part = slice(start, start + at_once)
        narrow = torch.bmm(lines[part], columns[part].mT).view(-1, height, size[1])
        tall = rows[part].repeat_interleave(channels, 0)
        torch.bmm(tall, narrow, out=result[part].view(-1, *size))
    return result
