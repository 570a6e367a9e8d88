"""Crops that look for objects: overlaps are torchvision's, the first patch that fits is cut as torchvision cuts it."""

import re

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_iou
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.detection import ObjectCrop, pack_boxes
from support.boxes import rectangles

SIZE = (40, 60)


def test_the_first_patch_that_fits_is_taken() -> None:
    """A loop over attempts in Python, with torchvision's intersection over union, over several objects an image."""
    crop = ObjectCrop(prob=0.9)
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(40, 3, 2, generator=generator) * torch.tensor([30.0, 15.0])
    boxes = torch.cat([starts, starts + 10 + torch.rand(40, 3, 2, generator=generator) * 15], 2)
    annotations = pack_boxes(list(boxes), [torch.ones(3)] * 40, SIZE)
    uniform = torch.rand(40, crop.draws, generator=generator)
    expected, found = [], 0
    for own, numbers in zip(boxes, uniform.double(), strict=True):
        window = [0, 0, *SIZE]
        least = crop.overlaps[int(numbers[0] * len(crop.overlaps))]
        for high, wide, down, across in numbers[2:].view(-1, 4).tolist():
            height, width = int((0.3 + 0.7 * high) * 40), int((0.3 + 0.7 * wide) * 60)
            top, left = int(down * (41 - height)), int(across * (61 - width))
            patch = torch.tensor([[left, top, left + width, top + height]]).float()
            middle = (own[:, :2] + own[:, 2:]) / 2
            inside = ((middle > patch[:, :2]) & (middle < patch[:, 2:])).all(1).any()
            shaped = 0.5 <= (width / 60) / (height / 40) <= 2
            if numbers[1] < 0.9 and shaped and inside and box_iou(own, patch).max() >= least:
                window, found = [top, left, height, width], found + 1
                break
        expected.append(window)

    assert expected == crop.windows(annotations, uniform, SIZE).tolist()
    assert 15 < found < 36


def test_equals_torchvision_at_the_same_draws() -> None:
    """Image and box cropped and resized; objects whose centres are outside are gone."""
    _, annotations = rectangles(24, SIZE)
    crop = ObjectCrop()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, *SIZE), dtype=torch.uint8, generator=generator)
    uniform = torch.rand(24, crop.draws, generator=generator)
    pixels, moved = crop.apply(images, annotations, uniform)
    windows = crop.windows(annotations, uniform, SIZE).tolist()

    assert sum(window != [0, 0, *SIZE] for window in windows) > 8
    for k, target in enumerate(moved.targets()):
        box = tv_tensors.BoundingBoxes(annotations.boxes[k : k + 1], format="XYXY", canvas_size=SIZE)
        box = reference.clamp_bounding_boxes(reference.resized_crop(box, *windows[k], list(SIZE)))

        assert torch.equal(reference.resized_crop(images[k], *windows[k], list(SIZE), antialias=True), pixels[k])
        torch.testing.assert_close(box.as_subclass(Tensor), target["boxes"], rtol=0, atol=1e-4)


def test_objects_stay_whose_centres_do() -> None:
    """The patch is the left half; the second object's centre lies on its edge and goes, the third's is just inside."""
    boxes = [[2, 2, 10, 10], [25, 0, 35, 10], [20, 0, 39.5, 10], [50, 0, 60, 10]]
    annotations = pack_boxes([torch.tensor(boxes)], [torch.arange(1, 5)], SIZE)
    crop = ObjectCrop(scale=(0.5, 0.5), overlaps=[0.0], prob=1.0)
    uniform = torch.zeros(1, crop.draws)
    _, moved = crop.apply(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), annotations, uniform)

    assert crop.windows(annotations, uniform, SIZE).tolist() == [[0, 0, 20, 30]]
    assert moved.labels.tolist() == [1, 3]
    assert moved.boxes.tolist() == [[4, 4, 20, 20], [40, 0, 60, 20]]


def test_an_image_without_objects_is_cut_anyway_and_one_where_none_fits_stays_whole() -> None:
    """A full overlap is out of reach for patches of half the side around an object of a tenth."""
    annotations = pack_boxes([torch.zeros(0, 4), torch.tensor([[0, 0, 4, 4]])], [torch.zeros(0), torch.ones(1)], SIZE)
    crop = ObjectCrop(scale=(0.5, 0.5), overlaps=[1.0], prob=1.0)

    assert crop.windows(annotations, torch.zeros(2, crop.draws), SIZE).tolist() == [[0, 0, 20, 30], [0, 0, 40, 60]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.5, 1.5)}, "ObjectCrop: scale is [0.5, 1.5]; give two numbers in order, from 0.001 to 1."),
        ({"ratio": (2.0, 0.5)}, "ObjectCrop: ratio is [2.0, 0.5]; give two numbers in order, from 0.001 to 1000."),
        ({"overlaps": []}, "ObjectCrop: overlaps is empty; give at least one fraction, or prob=0."),
        ({"overlaps": [0.5, 2]}, "ObjectCrop: overlaps is 2; give a fraction from 0 to 1."),
        ({"prob": 2}, "ObjectCrop: prob is 2; give a fraction from 0 to 1."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ObjectCrop(**settings)
