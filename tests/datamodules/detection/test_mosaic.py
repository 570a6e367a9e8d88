"""Mosaics: four images by hand, tiles read off the pixels, wrong ones noticed; partners are permutations."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_vision.datamodules.detection import Annotations, Mosaic, pack_boxes
from lightning_vision.datamodules.detection._partners import of_partners, partners
from lightning_vision.datamodules.detection._placing import joined, move_objects
from support.boxes import rectangles, union

QUADRANTS = Mosaic(scale=(1.0, 1.0), min_visible=0.0, fill=0)


def four() -> tuple[Tensor, Annotations, Tensor]:
    """Images of 4 x 4 filled with 1, 2, 3 and 4, each with one box; in the order 0, 1, 2, 3 of their last numbers."""
    images = torch.arange(1, 5, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 1, 4, 4)
    boxes = [[[0, 0, 4, 4]], [[0, 1, 1, 4]], [[3, 0, 4, 1]], [[0, 0, 3, 2]]]
    annotations = pack_boxes([torch.tensor(own) for own in boxes], list(torch.arange(1, 5)[:, None]), (4, 4))
    uniform = torch.tensor([[0.0, 0.0, 0.0, 0.0, rank / 4] for rank in range(4)])
    return images, annotations, uniform


def test_quadrants_by_hand() -> None:
    """The point lies at row 1, column 3: image 1 gives its lower right corner, 2 its lower left, 3 its upper right."""
    images, annotations, uniform = four()
    uniform[:, 1] = 0.5
    pixels, moved = Mosaic(scale=(1, 1), centre=(0.25, 1.0), min_visible=0.0).apply(
        images, annotations, torch.where(torch.tensor([False, True, False, False, False]), 0.67, uniform)
    )
    first = moved.targets()[0]

    assert pixels[0, 0].tolist() == [[1, 1, 1, 2], [3, 3, 3, 4], [3, 3, 3, 4], [3, 3, 3, 4]]
    assert first["labels"].tolist() == [1, 2, 3, 4]
    assert first["boxes"].tolist() == [[0, 0, 3, 1], [3, 0, 4, 1], [2, 1, 3, 2], [3, 1, 4, 3]]
    assert pixels[2, 0].tolist() == [[3, 3, 3, 4], [1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 2]]
    assert moved.placement[0].tolist() == [1, 1, -1, -3]


def test_whole_images_by_hand() -> None:
    """Half as large around the middle each image is whole, and each box half as long."""
    images, annotations, uniform = four()
    pixels, moved = Mosaic(scale=(0.5, 0.5), centre=(0.5, 0.5)).apply(images, annotations, uniform)
    first = moved.targets()[0]

    assert pixels[0, 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    # Half a pixel wide are the boxes of the second and the third.
    assert first["labels"].tolist() == [1, 4]
    assert first["boxes"].tolist() == [[0, 0, 2, 2], [2, 2, 3.5, 3]]


@pytest.mark.parametrize("seed", range(4))
def test_boxes_end_where_the_bright_pixels_do(seed: int) -> None:
    """Unscaled, the masks together are the picture, and each mask ends where its box does."""
    images, annotations = rectangles(6, (40, 60), seed)
    pixels, moved = QUADRANTS(images, annotations, torch.Generator().manual_seed(seed))
    shown = union(moved)
    rows, columns = moved.masks.amax(2), moved.masks.amax(1)
    edges = [[it.argmax(1), it.shape[1] - it.flip(1).argmax(1)] for it in (columns, rows)]

    assert len(moved.boxes) > 6
    assert torch.equal(pixels[:, 0], shown * 255)
    assert torch.equal(torch.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], 1).float(), moved.boxes)


@pytest.mark.parametrize(
    ("name", "choose"),
    [
        ("right", lambda number, sources: (number, sources[number], sources[number])),
        ("a partner's boxes with the image's own shift", lambda number, sources: (0, sources[number], sources[number])),
        ("the image's boxes in every tile", lambda number, sources: (number, sources[0], sources[number])),
        ("tiles transposed", lambda number, sources: ((0, 2, 1, 3)[number], sources[number], sources[number])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_mosaic_is_noticed_in_the_pixels(name: str, choose: object) -> None:
    images, annotations = rectangles(6, (40, 60))
    uniform = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    pixels, _ = QUADRANTS.apply(images, annotations, uniform)
    windows, places = QUADRANTS.tiles(uniform, (40, 60))
    sources, parts = partners(uniform[:, 4], 4), []
    for number in range(4):
        tile, objects, _ = choose(number, sources)
        parts.append(move_objects(of_partners(annotations, objects), windows[tile], places[tile], (40, 60), 0.0))
    together = joined(parts[0], parts[1:])
    shown = union(together)

    assert torch.equal(pixels[:, 0], shown * 255) == (name == "right")


def test_scaled_tiles_have_the_objects_within_a_pixel() -> None:
    """What is bright in the picture is bright in a mask or beside one, and what is deep inside a mask is bright."""
    images, annotations = rectangles(8, (40, 60))
    pixels, moved = Mosaic(min_visible=0.0, fill=0)(images, annotations, torch.Generator().manual_seed(0))
    shown = union(moved)[:, None].float()
    bright = (pixels >= 128).float()
    wider = torch.nn.functional.max_pool2d(shown, 3, 1, 1)
    narrower = 1 - torch.nn.functional.max_pool2d(1 - shown, 3, 1, 1)

    assert (bright <= wider).all() and (narrower <= bright).all()
    assert 0.1 < shown.mean() < 0.5


def test_images_that_become_no_mosaic_stay_as_they_are() -> None:
    images, annotations = rectangles(40, (20, 24))
    mosaic = Mosaic(prob=0.4)
    uniform = torch.rand(40, 5, generator=torch.Generator().manual_seed(0))
    pixels, moved = mosaic.apply(images, annotations, uniform)
    before, after = annotations.targets(), moved.targets()
    alone = uniform[:, 3] >= 0.4

    assert 0 < alone.sum() < 40
    assert torch.equal(images[alone], pixels[alone]) and not torch.equal(images[~alone], pixels[~alone])
    for k in alone.nonzero()[:, 0].tolist():
        assert all(torch.equal(value, after[k][name]) for name, value in before[k].items())


def test_partners_follow_in_the_order_of_a_column() -> None:
    column = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.7])
    own, second, third, fourth = partners(column, 4)

    assert own.tolist() == [0, 1, 2, 3, 4]
    assert second.tolist() == [4, 3, 1, 0, 2]
    assert third.tolist() == [2, 0, 3, 4, 1]
    assert fourth.tolist() == [1, 4, 0, 2, 3]
    assert [it.tolist() for it in partners(column[:1], 3)] == [[0], [0], [0]]


def test_objects_of_partners_come_with_their_images() -> None:
    _, annotations = rectangles(5, (16, 16))
    source = torch.tensor([3, 0, 4, 1, 2])
    moved = replace(annotations, placement=torch.arange(20.0).view(5, 4))
    brought = of_partners(moved, source)

    assert brought.placement.tolist() == moved.placement[source].tolist()
    for sample, label in zip(brought.sample, brought.labels, strict=True):
        assert source[sample] == label - 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.5, 1.5)}, "Mosaic: scale is [0.5, 1.5]; give two numbers in order, from 0.001 to 1."),
        ({"centre": (0.8, 0.2)}, "Mosaic: centre is [0.8, 0.2]; give two numbers in order, from 0 to 1."),
        ({"prob": 2}, "Mosaic: prob is 2; give a fraction from 0 to 1."),
        ({"fill": -1}, "Mosaic: fill is -1; give a whole number from 0 to 255."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Mosaic(**settings)
