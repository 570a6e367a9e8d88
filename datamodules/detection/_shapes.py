"""Outlines of objects as COCO writes them, packed, and their masks.

A point of a polygon lies on the grid of pixels' corners, as a box's corner does: pixel (column, row) covers
column..column + 1. It belongs to a polygon if its centre does. Runs are lengths of 0s and 1s in turn, column by column.
"""

from array import array
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Outlines", "Shapes", "decode_runs", "fill_polygon", "tensor_of"]

POLYGONS, RUNS = 0, 1
LARGEST = 2**24


@dataclass(frozen=True)
class Shapes:
    """Outlines of S objects.

    Args:
        spans: Kind, first and end, int64 `(S, 3)`: of `polygons` where the kind is 0, of `runs` where it is 1.
        polygons: Where each polygon begins in `points` and, last, where all end, int64 `(Q + 1,)`.
        points: x and y, float32 `(P, 2)`, pixels of the original image.
        runs: Lengths, int32 `(R,)`.
    """

    spans: Tensor
    polygons: Tensor
    points: Tensor
    runs: Tensor

    def mask(self, shape: int, size: tuple[int, int], placement: Tensor, canvas: tuple[int, int]) -> Tensor:
        """What one object covers.

        Args:
            shape: Which, 0..S - 1.
            size: Height and width of the original image, pixels.
            placement: Scale across, scale down, shift right, shift down, float32 `(4,)`.
            canvas: Height and width of the mask, pixels.

        Returns:
            uint8 0 and 1, `canvas` large.
        """
        kind, first, end = self.spans[shape].tolist()
        across, down, right, below = placement.tolist()
        if kind == RUNS:
            whole = _unfold(self.runs[first:end].numpy(), size)
            return torch.from_numpy(_sample(whole, (down, across), (below, right), canvas))
        mask = np.zeros(canvas, np.uint8)
        bounds = self.polygons[first : end + 1].tolist()
        for start, stop in pairwise(bounds):
            points = self.points[start:stop].double().numpy()
            fill_polygon(mask, points * (across, down) + (right, below))
        return torch.from_numpy(mask)


class Outlines:
    """Collects outlines into `Shapes`."""

    def __init__(self) -> None:
        self.spans, self.polygons = array("q"), array("q", [0])
        self.points, self.runs = array("f"), array("i")

    def add(self, segmentation: Any, size: tuple[int, int]) -> int:
        """Take one object's; the number that `Shapes.mask` knows it by, -1 where there is nothing.

        Args:
            segmentation: A list of polygons `[x, y, x, y, ...]`, or `{"counts", "size"}` with run lengths as a list or
                in COCO's compressed text.
            size: Height and width of its image, pixels.

        Raises:
            ValueError: it is none of these, or of another size; nothing was taken.
        """
        if not segmentation:
            return -1
        if isinstance(segmentation, dict):
            first = len(self.runs)
            self.runs.extend(_checked_runs(segmentation, size))
            self.spans.extend((RUNS, first, len(self.runs)))
        else:
            polygons = [_checked_polygon(polygon) for polygon in segmentation]
            first = len(self.polygons) - 1
            for polygon in polygons:
                self.points.extend(polygon)
                self.polygons.append(len(self.points) // 2)
            self.spans.extend((POLYGONS, first, len(self.polygons) - 1))
        return len(self.spans) // 3 - 1

    def packed(self) -> Shapes:
        """All that were taken."""
        return Shapes(
            tensor_of(self.spans).view(-1, 3),
            tensor_of(self.polygons),
            tensor_of(self.points).view(-1, 2),
            tensor_of(self.runs),
        )


def tensor_of(values: "array[Any]") -> Tensor:
    """A copy of the numbers, `(n,)`, of their type."""
    return torch.from_numpy(np.array(values))


def decode_runs(text: str) -> list[int]:
    """Run lengths out of COCO's compressed text.

    A number is written in groups of five bits, low ones first, each in the character 48 + group; 32 is added where more
    follow, and the highest bit of the last group is the sign. From the fourth on it is the difference to the run two
    before.

    Raises:
        ValueError: it breaks off inside a number, has characters beyond those or numbers beyond 64 bits.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("compressed run lengths that are damaged")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that are damaged")
    return runs


def fill_polygon(mask: np.ndarray, points: np.ndarray) -> None:
    """Set the pixels whose centres lie inside, by the even-odd rule.

    Args:
        mask: uint8 `(H, W)`, changed in place.
        points: Corners in turn, x and y, float `(P, 2)`; the last is joined to the first.
    """
    height, width = mask.shape
    ends = np.roll(points, -1, axis=0)
    low, high = np.minimum(points[:, 1], ends[:, 1]), np.maximum(points[:, 1], ends[:, 1])
    first, last = (np.ceil(side - 0.5).clip(0, height).astype(np.int64) for side in (low, high))
    counts = last - first
    if not counts.any():
        return
    # Each line of centres that an edge crosses, edge by edge.
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    slope = (ends[edge, 0] - points[edge, 0]) / (ends[edge, 1] - points[edge, 1])
    crossing = points[edge, 0] + (row + 0.5 - points[edge, 1]) * slope
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    top, left = row.min(), column.min()
    shape = row.max() - top + 1, column.max() - left + 1
    toggles = np.bincount((row - top) * shape[1] + column - left, minlength=shape[0] * shape[1]).reshape(shape)
    inside = (toggles.cumsum(1) & 1).astype(np.uint8)[:, : width - left]
    mask[top : top + shape[0], left : left + inside.shape[1]] |= inside


def _checked_polygon(polygon: Any) -> "array[float]":
    try:
        points = array("f", polygon)
    except (OverflowError, TypeError):
        points = array("f")
    if len(points) < 6 or len(points) % 2:
        raise ValueError("a polygon that is no list of at least three points x, y")
    if not all(abs(it) < LARGEST for it in points):  # so that no number is NaN, too
        raise ValueError("a polygon with a coordinate that no image has")
    return points


def _checked_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> list[int]:
    counts, given = segmentation.get("counts"), segmentation.get("size")
    if given != list(size):
        raise ValueError(f"a mask of size {given} in an image of height {size[0]} and width {size[1]}")
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("a mask whose run lengths are not whole numbers from 0 on")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"a mask whose runs cover {sum(runs)} of {size[0] * size[1]} pixels")
    return runs


def _unfold(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 `(H, W)` of run lengths that fill it."""
    values = (np.arange(len(runs)) % 2).astype(np.uint8)
    return np.repeat(values, runs).reshape(size[1], size[0]).T


def _sample(
    whole: np.ndarray, scale: tuple[float, float], shift: tuple[float, float], canvas: tuple[int, int]
) -> np.ndarray:
    """The pixel of `whole` under the centre of each of `canvas`, 0 where there is none."""
    places = [
        np.floor((np.arange(side) + 0.5 - moved) / by).astype(np.int64)
        for side, by, moved in zip(canvas, scale, shift, strict=True)
    ]
    inside = [(place >= 0) & (place < side) for place, side in zip(places, whole.shape, strict=True)]
    mask = np.zeros(canvas, np.uint8)
    mask[np.ix_(*inside)] = whole[np.ix_(*(place[there] for place, there in zip(places, inside, strict=True)))]
    return mask
