"""Windows cut at random out of padded images, half of them mirrored."""

from collections.abc import Sequence
from typing import Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_images, whole, window
from .augmentation import Augmentation

__all__ = ["ShiftCrop"]


def crop_windows(
    images: Tensor, row: Tensor, column: Tensor, flip: Tensor, padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Mirror images left to right, pad them with zeros and cut a window out of each.

    Args:
        images: `(B, C, H, W)`, any dtype; left alone.
        row: First row of the window in the padded image, int64 `(B,)`.
        column: First column, likewise.
        flip: Which images to mirror, bool `(B,)`.
        padding: Rows above and below, columns left and right.
        size: Height and width of the window, pixels.
    """
    if images.device.type != "cpu":
        return crop_by_gather(images, row, column, flip, padding, size)
    # On a CPU slices are several times as fast as one gather: whole rows are copied and no index is read. Where nothing
    # is mirrored one view has them all, which spares small images the loop.
    crop = crop_by_slices if flip.any() else crop_by_view
    return crop(images, row, column, flip, padding, size)


def crop_by_slices(
    images: Tensor, row: Tensor, column: Tensor, flip: Tensor, padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """`crop_windows`, one slice an image, on the CPU."""
    down, across = (
        [_overlap(first - pad, here, side) for first in range(here + 2 * pad - side + 1)]
        for here, pad, side in zip(images.shape[-2:], padding, size, strict=True)
    )
    form = (*images.shape[:2], *size)
    # Without padding every pixel is written.
    result = images.new_zeros(form) if any(padding) else images.new_empty(form)
    draws = zip(row.tolist(), column.tolist(), flip.tolist(), strict=True)
    for source, sink, (top, left, flipped) in zip(images.numpy(), result.numpy(), draws, strict=True):
        (to_row, from_row), (to_column, from_column) = down[top], across[left]
        if flipped:
            source = source[..., ::-1]
        sink[:, to_row, to_column] = source[:, from_row, from_column]
    return result


def crop_by_view(
    images: Tensor, row: Tensor, column: Tensor, flip: Tensor, padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """`crop_windows` where `flip` is all False, as a selection of all windows, on the CPU."""
    down, across = padding
    padded = F.pad(images, (across, across, down, down)) if any(padding) else images
    windows = padded.unfold(2, size[0], 1).unfold(3, size[1], 1).numpy()
    return torch.from_numpy(windows[np.arange(len(images)), :, row.numpy(), column.numpy()])


def crop_by_gather(
    images: Tensor, row: Tensor, column: Tensor, flip: Tensor, padding: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """`crop_windows`, one gather a batch, on any device."""
    down, across = padding
    padded = F.pad(images, (across, across, down, down)).permute(0, 2, 3, 1)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    rows = row[:, None] + torch.arange(size[0], device=images.device)
    columns = column[:, None] + torch.arange(size[1], device=images.device)
    columns = torch.where(flip[:, None], padded.shape[2] - 1 - columns, columns)
    return padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


@final
class ShiftCrop(Augmentation):
    """Shifts each image by padding it and cutting a window at random, and mirrors half of them.

    torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip`, a draw of its own for each image.

    Args:
        padding: Black pixels added on each side before the window is cut; 0 adds none; "auto" adds an eighth of the
            window's side along a side that the window would fill, none along one that is longer anyway.
        flip: Mirror an image left to right with probability one half.
        size: Window, pixels: one side or height and width; None is the images' own size.

    Shape:
        uint8 `(B, C, H, W)` to `(B, C, *size)`.

    Raises:
        ValueError: `padding` is negative or `size` no size; images are not uint8 `(B, 1 or 3, H, W)`, or smaller than
            the window.

    Example:
        >>> images = torch.ones(2, 3, 32, 32, dtype=torch.uint8)
        >>> ShiftCrop(padding=4, flip=True)(images).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, padding: int | Literal["auto"] = 0, flip: bool = False, size: int | Sequence[int] | None = None
    ) -> None:
        if padding != "auto":
            whole("ShiftCrop", "padding", padding, 0, otherwise='"auto"')
        self.padding, self.flip = padding, flip
        self.size = window("ShiftCrop", size)
        self.draws = 3 if flip else 2

    def apply(self, images: Tensor, uniform: Tensor) -> Tensor:
        check_images("ShiftCrop", images, uniform, self.draws)
        row, column, flip, padding = self._windows(uniform, (images.shape[2], images.shape[3]))
        size = self.size_after((images.shape[2], images.shape[3]))
        if not self.flip and size == images.shape[2:] and not any(padding):
            return images.clone()
        return crop_windows(images, row, column, flip, padding, size)

    def source_boxes(self, uniform: Tensor, size: tuple[int, int]) -> Tensor:
        row, column, flip, (down, across) = self._windows(uniform, size)
        height, width = self.size_after(size)
        top, left = (row - down).float(), (column - across).float()
        # Mirrored before it was cut.
        left, right = (torch.where(flip, size[1] - x, x) for x in (left, left + width))
        return torch.stack([left, top, right, top + height], 1)

    def size_after(self, size: tuple[int, int]) -> tuple[int, int]:
        return self.size or size

    def _windows(self, uniform: Tensor, here: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """First row and column of each window in the padded image, which images are mirrored, and the padding."""
        size = self.size or here
        if self.padding == "auto":
            padding = (size[0] // 8 if here[0] <= size[0] else 0, size[1] // 8 if here[1] <= size[1] else 0)
        else:
            padding = (self.padding, self.padding)
        places = [side + 2 * pad - cut + 1 for side, pad, cut in zip(here, padding, size, strict=True)]
        if min(places) < 1:
            raise ValueError(
                f"ShiftCrop: size is {size[0]} x {size[1]} and the images are {here[0]} x {here[1]}, padded by "
                f"{max(padding)}; give larger images or a smaller size."
            )
        row, column = ((uniform[:, axis] * count).long() for axis, count in enumerate(places))
        flip = uniform[:, 2] < 0.5 if self.flip else torch.zeros_like(row, dtype=torch.bool)
        return row, column, flip, padding


def _overlap(first: int, here: int, side: int) -> tuple[slice, slice]:
    """Where a window of `side` pixels that begins at `first` overlaps `here` pixels: slices of both."""
    begin, end = max(first, 0), min(first + side, here)
    return slice(begin - first, end - first), slice(begin, end)
