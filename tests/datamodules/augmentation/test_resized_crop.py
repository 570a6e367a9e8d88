"""Inception's crop: pixels equal to torchvision's on every path, boxes drawn as it draws them."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import ResizedCrop
from lightning_vision.datamodules.augmentation._resize import resize_by_slices, resize_by_weights
from support.draws import apart

PATHS = pytest.mark.parametrize("resize", [resize_by_slices, resize_by_weights])
# Images (C, H, W) and results: smaller, larger, odd, grey, a single pixel, sizes with the most bits to a weight.
FORMS = [
    ((3, 64, 48), (32, 32)),
    ((1, 33, 17), (40, 21)),
    ((3, 5, 7), (9, 3)),
    ((1, 1, 1), (3, 3)),
    ((3, 8, 8), (150, 150)),
    ((3, 300, 300), (1, 1)),
    ((3, 120, 90), (64, 64)),
]


def random_images(form: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *form), dtype=torch.uint8, generator=generator)
    return images, torch.rand(count, ResizedCrop.draws, generator=generator)


@PATHS
@pytest.mark.parametrize(("form", "size"), FORMS)
def test_pixels_are_torchvisions(
    resize: Callable[..., Tensor], form: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """Bit for bit, as torch resizes bytes on the CPU."""
    images, uniform = random_images(form, 16)
    boxes = ResizedCrop(size).boxes(uniform, form[1:])
    flip = uniform[:, -1] < 0.5
    expected = []
    for image, box, flipped in zip(images, boxes.tolist(), flip.tolist(), strict=True):
        resized = reference.resized_crop(image, *box, list(size), antialias=True)
        expected.append(reference.horizontal_flip(resized) if flipped else resized)

    assert torch.equal(torch.stack(expected), resize(images, boxes, flip, size))


def test_boxes_by_hand() -> None:
    """Area 0.08 + 0.5 * 0.92 of 100 x 100 with an even shape is a side of 73; 28 places, the middle one is 14."""
    middle = torch.full((1, ResizedCrop.draws), 0.5)
    too_wide = middle.clone()
    too_wide[0, :20] = torch.tensor([0.99, 0.99]).repeat(10)
    crop = ResizedCrop()

    assert crop.boxes(middle, (100, 100)).tolist() == [[14, 14, 73, 73]]
    assert crop.boxes(too_wide, (100, 100)).tolist() == [[0, 0, 100, 100]]
    assert crop.boxes(too_wide, (30, 100)).tolist() == [[0, 30, 30, 40]]
    assert crop.boxes(too_wide, (100, 30)).tolist() == [[30, 0, 40, 30]]


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        ((64, 64), {}),
        ((40, 90), {}),
        ((90, 30), {"scale": (0.3, 0.9)}),
        ((20, 25), {"scale": (0.5, 1.0), "ratio": (0.5, 1.5)}),
    ],
    ids=["square", "wide", "often none fits", "coarse"],
)
def test_boxes_are_drawn_as_by_torchvision(size: tuple[int, int], settings: dict[str, tuple[float, float]]) -> None:
    """Means, squares and products of row, column, height and width within four standard errors."""
    ours, theirs = ours_and_theirs(size, settings, settings)

    assert apart(ours, theirs) < 4


def test_the_comparison_of_draws_notices_a_slightly_other_scale() -> None:
    ours, theirs = ours_and_theirs((64, 64), {"scale": (0.12, 1.0)}, {})

    assert apart(ours, theirs) > 4


def ours_and_theirs(size: tuple[int, int], mine: dict[str, object], its: dict[str, object]) -> tuple[Tensor, Tensor]:
    """Boxes of 30,000 draws of ours and 6,000 of torchvision's."""
    uniform = torch.rand(30_000, ResizedCrop.draws, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        crop, image = RandomResizedCrop(8, **its), torch.empty(1, *size)
        drawn = [crop.make_params([image]) for _ in range(6_000)]
    boxes = [[box[side] for side in ("top", "left", "height", "width")] for box in drawn]
    return ResizedCrop(**mine).boxes(uniform, size), torch.tensor(boxes)


def test_flip_is_a_setting() -> None:
    """Without it nothing is mirrored, with it one image in two; 0.04 are four standard errors of 2,500."""
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(2_500, 1, 2, 2)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    generator = torch.Generator().manual_seed(0)

    assert torch.equal(ResizedCrop(flip=False, **whole)(images), images)
    assert (ResizedCrop(**whole)(images, generator)[:, 0, 0, 0] == 255).float().mean() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": (0, 3)}, "ResizedCrop: size is (0, 3); give one side or height and width, pixels, at least 1."),
        ({"scale": (0.5, 0.2)}, "ResizedCrop: scale is [0.5, 0.2]; give two numbers in order, from 1e-06 to 1."),
        ({"scale": (0.5, 1.2)}, "ResizedCrop: scale is [0.5, 1.2]; give two numbers in order, from 1e-06 to 1."),
        ({"ratio": (1.0,)}, "ResizedCrop: ratio is [1.0]; give two numbers in order, from 0.001 to 1000."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ResizedCrop(**settings)
