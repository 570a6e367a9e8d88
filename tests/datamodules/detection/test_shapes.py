"""Outlines become masks as pycocotools makes them; damaged ones are refused."""

from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as theirs

from lightning_vision.datamodules.detection._shapes import Outlines, decode_runs, fill_polygon

SIZE = (30, 40)
AS_IT_IS = torch.tensor([1.0, 1.0, 0.0, 0.0])


def blobs(seed: int) -> np.ndarray:
    """A mask of some random rectangles, uint8 `SIZE`."""
    draw = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        (top, bottom), (left, right) = (np.sort(draw.integers(0, side + 1, 2)) for side in SIZE)
        mask[top:bottom, left:right] ^= 1
    return mask


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_decoded_as_pycocotools_does(seed: int) -> None:
    mask = blobs(seed)
    text = theirs.encode(np.asfortranarray(mask))["counts"].decode()
    outlines = Outlines()
    number = outlines.add({"counts": text, "size": list(SIZE)}, SIZE)

    assert torch.equal(torch.from_numpy(mask), outlines.packed().mask(number, SIZE, AS_IT_IS, SIZE))
    runs = decode_runs(text)
    plain = theirs.frPyObjects({"counts": runs, "size": list(SIZE)}, *SIZE)
    assert theirs.decode(plain).tolist() == mask.tolist()


@pytest.mark.parametrize(
    "polygons", [[[3, 4, 20, 4, 20, 25, 3, 25]], [[0, 0, 8, 0, 8, 9, 0, 9], [5, 5, 40, 5, 40, 30, 5, 30]]]
)
def test_corners_on_the_grid_cover_the_pixels_between_them(polygons: list[list[float]]) -> None:
    expected = np.zeros(SIZE, np.uint8)
    for left, top, _, _, right, bottom, *_ in polygons:
        expected[top:bottom, left:right] = 1
    outlines = Outlines()
    number = outlines.add(polygons, SIZE)
    ours = outlines.packed().mask(number, SIZE, AS_IT_IS, SIZE)
    merged = theirs.decode(theirs.merge(theirs.frPyObjects([[float(it) for it in one] for one in polygons], *SIZE)))

    assert ours.tolist() == expected.tolist() == merged.tolist()


def test_other_polygons_differ_from_pycocotools_in_pixels_that_the_outline_cuts_only() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        polygon = (draw.random((5, 2)) * (SIZE[1], SIZE[0])).reshape(-1).tolist()
        ours = np.zeros(SIZE, np.uint8)
        fill_polygon(ours, np.array(polygon).reshape(-1, 2))
        other = theirs.decode(theirs.frPyObjects([polygon], *SIZE))[..., 0]
        rows, columns = np.nonzero(ours != other)
        corners = np.array(polygon).reshape(-1, 2)
        along, ends = np.roll(corners, -1, 0) - corners, corners
        centres = np.stack([columns, rows], 1)[:, None] + 0.5 - ends
        share = ((centres * along).sum(2) / (along**2).sum(1)).clip(0, 1)
        distance = np.hypot(*(centres - share[..., None] * along).transpose(2, 0, 1)).min(1, initial=np.inf)

        assert (distance < 1.5**0.5).all()


def test_a_pixel_is_inside_if_its_centre_is() -> None:
    """Against the sum of angles' sign, pixel by pixel: an even number of crossings to the left is outside."""
    draw = np.random.default_rng(1)
    polygon = draw.random((6, 2)) * (SIZE[1] + 20, SIZE[0] + 20) - 10
    ours = np.zeros(SIZE, np.uint8)
    fill_polygon(ours, polygon)
    expected = np.zeros(SIZE, np.uint8)
    for row, column in np.ndindex(*SIZE):
        x, y, inside = column + 0.5, row + 0.5, False
        for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
            if (y1 <= y) != (y2 <= y) and x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x:
                inside = not inside
        expected[row, column] = inside

    assert ours.tolist() == expected.tolist()


def test_polygons_and_runs_go_where_the_pixels_go() -> None:
    placement = torch.tensor([2.0, 2.0, 5.0, 10.0])
    canvas = 80, 90
    mask = np.zeros(SIZE, np.uint8)
    mask[4:25, 3:20] = 1
    text = theirs.encode(np.asfortranarray(mask))["counts"].decode()
    expected = torch.zeros(canvas, dtype=torch.uint8)
    expected[18:60, 11:45] = 1

    for segmentation in ([[3, 4, 20, 4, 20, 25, 3, 25]], {"counts": text, "size": list(SIZE)}):
        outlines = Outlines()
        number = outlines.add(segmentation, SIZE)
        assert torch.equal(expected, outlines.packed().mask(number, SIZE, placement, canvas))


def test_nothing_is_no_shape() -> None:
    assert [Outlines().add(nothing, SIZE) for nothing in (None, [], {})] == [-1] * 3


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3, 4]], "^a polygon that is no list of at least three points x, y$"),
        ([[1, 2, 3, 4, 5, 6, 7]], "^a polygon that is no list of at least three points x, y$"),
        ([["1", 2, 3, 4, 5, 6]], "^a polygon that is no list of at least three points x, y$"),
        ([1.0, 2.0], "^a polygon that is no list of at least three points x, y$"),
        ([[1, 2, 3, 4, 5, float("nan")]], "^a polygon with a coordinate that no image has$"),
        ([[1, 2, 3, 4, 5, 1e200]], "^a polygon with a coordinate that no image has$"),
        ({"counts": [1200], "size": [40, 30]}, r"^a mask of size \[40, 30\] in an image of height 30 and width 40$"),
        ({"counts": [1199], "size": [30, 40]}, "^a mask whose runs cover 1199 of 1200 pixels$"),
        ({"counts": [1201, -1], "size": [30, 40]}, "^a mask whose run lengths are not whole numbers from 0 on$"),
        ({"counts": "o", "size": [30, 40]}, "^compressed run lengths that are damaged$"),
        ({"counts": "o" * 10**6, "size": [30, 40]}, "^compressed run lengths that are damaged$"),
        ({"counts": "é", "size": [30, 40]}, "^compressed run lengths that are damaged$"),
    ],
)
def test_a_damaged_outline_is_refused_and_leaves_nothing_behind(segmentation: Any, problem: str) -> None:
    outlines = Outlines()
    with pytest.raises(ValueError, match=problem):
        outlines.add(segmentation, SIZE)

    assert len(outlines.packed().spans) == 0
    assert outlines.add([[0, 0, 5, 0, 5, 5]], SIZE) == 0
