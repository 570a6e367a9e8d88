"""Mirrored boxes and masks: by hand, against torchvision, an involution; wrong ones are noticed."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.detection import HorizontalFlip, flip_horizontally, pack_boxes
from support.boxes import extent, rectangles


def test_by_hand() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(1, 1, 2, 6)
    annotations = pack_boxes([torch.tensor([[1.0, 0.0, 2.5, 2.0]])], [torch.tensor([3])], (2, 6))
    pixels, moved = flip_horizontally(images, annotations, torch.tensor([True]))

    assert pixels.tolist() == [[[[5, 4, 3, 2, 1, 0], [11, 10, 9, 8, 7, 6]]]]
    assert moved.boxes.tolist() == [[3.5, 0.0, 5.0, 2.0]]
    assert moved.placement.tolist() == [[-1.0, 1.0, 6.0, 0.0]]


def test_twice_is_the_batch_again() -> None:
    """Coordinates are sixteenths of a pixel, which floats subtract exactly."""
    images, annotations = rectangles(8, (20, 30))
    annotations = replace(annotations, boxes=annotations.boxes + torch.arange(32).view(8, 4) / 16)
    flip = torch.arange(8) % 3 > 0
    pixels, moved = flip_horizontally(*flip_horizontally(images, annotations, flip), flip)

    assert torch.equal(images, pixels)
    there = {name: value for name, value in vars(annotations).items() if value is not None}
    assert all(torch.equal(value, getattr(moved, name)) for name, value in there.items())


def test_equals_torchvision_at_the_same_draws() -> None:
    images, annotations = rectangles(16, (20, 31), channels=3)
    uniform = torch.rand(16, 1, generator=torch.Generator().manual_seed(0))
    pixels, moved = HorizontalFlip(prob=0.4).apply(images, annotations, uniform)
    for k, target in enumerate(moved.targets()):
        box = tv_tensors.BoundingBoxes(annotations.boxes[k : k + 1], format="XYXY", canvas_size=(20, 31))
        mask = tv_tensors.Mask(annotations.masks[k : k + 1])
        flips = reference.horizontal_flip if uniform[k, 0] < 0.4 else torch.clone

        assert torch.equal(flips(images[k]), pixels[k])
        assert torch.equal(flips(box).as_subclass(Tensor), target["boxes"])
        assert torch.equal(flips(mask).as_subclass(Tensor), target["masks"])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("right", lambda box, width: torch.stack([width - box[2], box[1], width - box[0], box[3]])),
        ("without the width", lambda box, width: torch.stack([-box[2], box[1], -box[0], box[3]])),
        ("off by one", lambda box, width: torch.stack([width - 1 - box[2], box[1], width - 1 - box[0], box[3]])),
        ("ends swapped", lambda box, width: torch.stack([width - box[0], box[1], width - box[2], box[3]])),
        ("upside down", lambda box, width: torch.stack([box[0], 20 - box[3], box[2], 20 - box[1]])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_flip_is_noticed_in_the_pixels(name: str, wrong: object) -> None:
    images, annotations = rectangles(6, (20, 31))
    pixels, moved = HorizontalFlip(prob=1.0)(images, annotations)
    truth = torch.stack([extent(image[0]) for image in pixels])
    mutant = torch.stack([wrong(box, 31) for box in annotations.boxes])

    assert torch.equal(truth, moved.boxes)
    assert torch.equal(truth, mutant) == (name == "right")


def test_one_image_in_three_is_mirrored() -> None:
    """4 standard errors of a share of one third in 10,000 images are 0.019."""
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    nothing = pack_boxes([torch.zeros(0, 4)] * 10_000, [torch.zeros(0)] * 10_000, (1, 2))
    pixels, _ = HorizontalFlip(prob=1 / 3)(images, nothing, torch.Generator().manual_seed(0))

    assert pixels[:, 0, 0, 0].float().mean().item() == pytest.approx(1 / 3, abs=0.019)


def test_a_probability_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("HorizontalFlip: prob is 1.5; give a fraction from 0 to 1.")):
        HorizontalFlip(prob=1.5)
