"""Scale jitter: by hand, equal to torchvision at equal draws, on both paths; what is lost is counted by hand."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.detection import ScaleJitter, pack_boxes
from lightning_vision.datamodules.detection._pasting import paste_by_slices, paste_by_weights
from lightning_vision.datamodules.detection._placing import move_objects
from support.boxes import extent, rectangles


def test_windows_by_hand() -> None:
    """Images of 40 x 60: at 0.5 the whole goes to one of 21 rows and 31 columns, at 2 a window of a half is cut."""
    jitter = ScaleJitter(scale=(0.5, 2.0))
    uniform = torch.tensor([[0.0, 0.5, 0.0, 0.99], [1 - 2**-24, 0.5, 0.5, 0.5], [1 / 3, 0.5, 0.5, 0.5]])
    windows, places = jitter.windows(uniform, (40, 60), (40, 60))

    assert windows.tolist() == [[0, 0, 40, 60], [10, 15, 20, 30], [0, 0, 40, 60]]
    assert places.tolist() == [[0, 30, 20, 30], [0, 0, 40, 60], [0, 0, 40, 60]]


def test_another_size_fits_the_image_in_before_the_factor_acts() -> None:
    """40 x 60 fits into 80 x 60 as it is; twice as large its rows fill the height and a half of its columns is cut."""
    uniform = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    once = ScaleJitter(scale=(1, 1)).windows(uniform, (40, 60), (80, 60))
    twice = ScaleJitter(scale=(2, 2)).windows(uniform, (40, 60), (80, 60))

    assert [it.tolist() for it in once] == [[[0, 0, 40, 60]], [[20, 0, 40, 60]]]
    assert [it.tolist() for it in twice] == [[[0, 15, 40, 30]], [[0, 0, 80, 60]]]


@pytest.mark.parametrize("size", [(40, 60), (50, 33)])
@pytest.mark.parametrize("paste", [paste_by_slices, paste_by_weights])
def test_equals_torchvision_at_the_same_draws(size: tuple[int, int], paste: object) -> None:
    """Cropped, resized and padded tv_tensors; masks by the nearest centre, which moves as the pixels do."""
    _, annotations = rectangles(24, (40, 60))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 40, 60), dtype=torch.uint8, generator=generator)
    jitter = ScaleJitter((0.2, 2.0), size=size, min_visible=0.0)
    uniform = torch.rand(24, 4, generator=generator)
    windows, places = jitter.windows(uniform, (40, 60), size)
    pixels = paste(images.new_full((24, 3, *size), 114), images, windows, places)
    moved = move_objects(annotations, windows, places, size, 0.0).targets()
    for k, (window, place) in enumerate(zip(windows.tolist(), places.tolist(), strict=True)):
        edges = [place[1], place[0], size[1] - place[1] - place[3], size[0] - place[0] - place[2]]
        parts = (
            tv_tensors.Image(images[k]),
            tv_tensors.BoundingBoxes(annotations.boxes[k : k + 1], format="XYXY", canvas_size=(40, 60)),
        )
        image, box = (reference.pad(cropped(it, window, place[2:]), edges, fill=114) for it in parts)
        rows, columns = (nearest(*sides) for sides in zip(window[2:], place[2:], strict=True))
        mask = reference.crop(annotations.masks[k : k + 1], *window)[:, rows][:, :, columns]

        assert torch.equal(image.as_subclass(Tensor), pixels[k])
        if len(moved[k]["boxes"]):
            torch.testing.assert_close(box.as_subclass(Tensor), moved[k]["boxes"], rtol=0, atol=1e-4)
            assert torch.equal(reference.pad(mask, edges), moved[k]["masks"])


def test_the_nearest_pixel_is_torchs_where_one_is_nearest() -> None:
    """torch's `nearest-exact`, but for centres that lie between two pixels, where its floats decide."""
    for length in (1, 7, 16, 33):
        for count in (1, 5, 16, 50):
            numbers = torch.arange(length).float()[None, None]
            theirs = torch.nn.functional.interpolate(numbers, count, mode="nearest-exact")[0, 0]
            between = (2 * torch.arange(count) + 1) * length % (2 * count) == 0

            assert torch.equal(theirs[~between], torch.tensor(nearest(length, count)).float()[~between])


def test_both_paths_give_the_same_bytes_around_an_empty_place_too() -> None:
    images = torch.randint(256, (3, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    windows = torch.tensor([[0, 0, 9, 7], [2, 1, 3, 4], [0, 0, 9, 7]])
    places = torch.tensor([[1, 2, 0, 0], [3, 0, 8, 6], [0, 0, 11, 6]])
    canvas = torch.full((3, 3, 11, 6), 7, dtype=torch.uint8)
    by_weights = paste_by_weights(canvas, images, windows, places)

    assert (by_weights[0] == 7).all()
    assert torch.equal(paste_by_slices(canvas.clone(), images, windows, places), by_weights)


def test_lost_objects_by_hand() -> None:
    """The right lower quarter of 40 x 40, from (20, 20): of the boxes 0, 1/16, 1/4, 1 and a sliver of 0.25 is left."""
    boxes = [[0, 0, 10, 10], [12.5, 12.5, 22.5, 22.5], [15, 15, 25, 25], [25, 25, 30, 30], [0, 20, 20.25, 30]]
    annotations = pack_boxes([torch.tensor(boxes)], [torch.arange(1, 6)], (40, 40))
    windows, places = torch.tensor([[20, 20, 20, 20]]), torch.tensor([[0, 0, 40, 40]])
    kept = [move_objects(annotations, windows, places, (40, 40), least) for least in (0.0, 0.1, 0.25, 0.26)]

    assert [it.labels.tolist() for it in kept] == [[2, 3, 4], [3, 4], [3, 4], [4]]
    assert kept[0].boxes.tolist() == [[0, 0, 5, 5], [0, 0, 10, 10], [10, 10, 20, 20]]


def test_an_object_whose_mask_is_gone_is_lost() -> None:
    annotations = pack_boxes([torch.tensor([[0, 0, 8, 8], [0, 0, 8, 8]])], [torch.tensor([1, 2])], (8, 8))
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, :4], masks[1, 4:] = 1, 1
    lower = torch.tensor([[4, 0, 4, 8]])
    moved = move_objects(replace(annotations, masks=masks), lower, torch.tensor([[0, 0, 8, 8]]), (8, 8), 0.1)

    assert moved.labels.tolist() == [2]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("right", lambda windows, places: (windows, places)),
        ("x and y swapped", lambda windows, places: (windows[:, [1, 0, 3, 2]], places[:, [1, 0, 3, 2]])),
        ("a place's start forgotten", lambda windows, places: (windows, places * torch.tensor([0, 0, 1, 1]))),
        ("a window's start forgotten", lambda windows, places: (windows * torch.tensor([0, 0, 1, 1]), places)),
        ("scale upside down", lambda windows, places: (torch.cat([windows[:, :2], places[:, 2:]], 1), windows)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_boxes_are_noticed_in_the_pixels(name: str, change: object) -> None:
    images, annotations = rectangles(24, (40, 60))
    jitter = ScaleJitter((0.3, 1.8), fill=0, min_visible=0.0)
    uniform = torch.rand(24, 4, generator=torch.Generator().manual_seed(1))
    pixels, truth = jitter.apply(images, annotations, uniform)
    windows, places = change(*jitter.windows(uniform, (40, 60), (40, 60)))
    moved = move_objects(replace(annotations, masks=None), windows, places, (40, 60), 0.0)
    errors = [
        (box - extent(pixels[label - 1, 0] >= 128)).abs().max().item() if pixels[label - 1].amax() >= 128 else 99.0
        for box, label in zip(moved.boxes, moved.labels, strict=True)
    ]

    assert (max(errors) <= 1 and len(moved.boxes) == len(truth.boxes)) == (name == "right")


def test_factors_are_uniform_and_as_many_as_asked_for() -> None:
    """4 standard errors in 20,000: of the share 0.3 they are 0.013, of the mean 0.7 of factors of 0.4..1 0.009."""
    jitter = ScaleJitter((0.4, 1.0), prob=0.3)
    uniform = torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0))
    _, places = jitter.windows(uniform, (1000, 1000), (1000, 1000))
    factors = places[:, 2] / 1000

    assert (factors < 1).float().mean().item() == pytest.approx(0.3, abs=0.014)
    assert factors[factors < 1].mean().item() == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (2.0, 0.1)}, "ScaleJitter: scale is [2.0, 0.1]; give two numbers in order, from 0.001 to 1000."),
        ({"scale": (0.0, 1.0)}, "ScaleJitter: scale is [0.0, 1.0]; give two numbers in order"),
        ({"prob": -0.1}, "ScaleJitter: prob is -0.1; give a fraction from 0 to 1."),
        ({"min_visible": 2}, "ScaleJitter: min_visible is 2; give a fraction from 0 to 1."),
        ({"size": 0}, "ScaleJitter: size is 0; give one side or height and width, pixels, at least 1."),
        ({"fill": 256}, "ScaleJitter: fill is 256; give a whole number from 0 to 255."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ScaleJitter(**settings)


def cropped(it: Tensor, window: list[int], size: list[int]) -> Tensor:
    return reference.resized_crop(it, *window, size, antialias=True)


def nearest(length: int, count: int) -> list[int]:
    """The pixel of `length` that has the centre of each of `count`."""
    return [int(Fraction(2 * number + 1, 2) * length / count) for number in range(count)]
