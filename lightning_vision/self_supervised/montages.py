"""Images cut into patches, and patches of many images put together to new ones."""

import torch
from torch import Tensor

__all__ = ["dismantled", "montages", "patch_boxes", "shuffle", "unshuffled"]


def patch_boxes(height: int, width: int, grid: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Where the patches of an image lie: its cells, each reaching over its borders with others.

    Args:
        height: Of the image, pixels, at least `grid`.
        width: Likewise.
        grid: m; the image has m rows of m cells.
        overlap: How far a patch reaches into the next cell, fraction of the image's side; neutral 0.

    Returns:
        m m times top, left, bottom, right (half open, pixels), row by row.
    """
    ends = []
    for side in (height, width):
        more = int(overlap * side)
        ends.append([(max(0, side * k // grid - more), min(side, side * (k + 1) // grid + more)) for k in range(grid)])
    return [(top, left, bottom, right) for top, bottom in ends[0] for left, right in ends[1]]


def shuffle(uniform: Tensor) -> Tensor:
    """A permutation, int64 `(N,)`, from as many uniform numbers."""
    return uniform.flatten().argsort()


def montages(patches: Tensor, order: Tensor, grid: int) -> Tensor:
    """As many images as there were, each of patches from anywhere in the batch.

    Args:
        patches: `(B m m, C, h, w)`, those of an image in a row.
        order: Which patch comes in which place, int64 `(B m m,)`, places counted row by row, image by image.
        grid: m.

    Returns:
        `(B, C, m h, m w)`.
    """
    rows = patches[order].unflatten(0, (-1, grid, grid))
    return rows.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def dismantled(maps: Tensor, grid: int) -> Tensor:
    """The parts of maps of montages, or of montages, in the order of places.

    Args:
        maps: `(B, C, h, w)`.
        grid: m, which divides h and w.

    Returns:
        `(B m m, C, h / m, w / m)`.

    Raises:
        ValueError: m does not divide h or w.
    """
    height, width = maps.shape[2:]
    if height % grid or width % grid:
        raise ValueError(
            f"the backbone's map of a montage is {height} x {width} and cannot be cut into {grid} x {grid} parts; give "
            "a patch_size that leads to another one, or a backbone with another stride"
        )
    cells = maps.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def unshuffled(rows: Tensor, order: Tensor) -> Tensor:
    """What stands in places, `(B m m, ...)`, back in the order of the patches, those of an image in a row."""
    return torch.empty_like(rows).index_copy(0, order, rows)
