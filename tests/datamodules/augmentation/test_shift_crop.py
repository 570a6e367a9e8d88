"""Shifted windows: by hand, against torchvision at equal draws and in distribution, the same on every path."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import RandomCrop
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import ShiftCrop
from lightning_vision.datamodules.augmentation.shift_crop import crop_by_gather, crop_by_slices, crop_by_view
from support.draws import apart

CROPS = pytest.mark.parametrize("crop", [crop_by_slices, crop_by_gather])


@CROPS
def test_by_hand(crop: Callable[..., Tensor]) -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)[None, None].repeat(4, 1, 1, 1)
    row, column = torch.tensor([1, 0, 2, 1]), torch.tensor([1, 1, 0, 2])
    flip = torch.tensor([False, False, False, True])
    same, down, up_right, flipped_left = crop(image, row, column, flip, (1, 1), (3, 3))[:, 0].tolist()

    assert same == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert up_right == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
    assert flipped_left == [[2, 1, 0], [5, 4, 0], [8, 7, 0]]


@CROPS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(
    ("here", "padding", "size"),
    [((32, 32), (4, 4), (32, 32)), ((5, 9), (4, 4), (5, 9)), ((7, 4), (0, 2), (3, 8)), ((6, 9), (0, 0), (6, 5))],
)
def test_equals_torchvision_at_the_same_draws(
    crop: Callable[..., Tensor],
    dtype: torch.dtype,
    here: tuple[int, int],
    padding: tuple[int, int],
    size: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (40, 3, *here), generator=generator).to(dtype)
    row, column = (
        torch.randint(side + 2 * pad - cut + 1, (40,), generator=generator)
        for side, pad, cut in zip(here, padding, size, strict=True)
    )
    flip = torch.rand(40, generator=generator) < 0.5
    expected = []
    for one, top, left, flipped in zip(image, row.tolist(), column.tolist(), flip.tolist(), strict=True):
        turned = reference.horizontal_flip(one) if flipped else one
        expected.append(reference.crop(reference.pad(turned, [padding[1], padding[0]]), top, left, *size))

    assert torch.equal(torch.stack(expected), crop(image, row, column, flip, padding, size))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("here", "padding", "size"), [((8, 8), (1, 1), (8, 8)), ((6, 9), (0, 2), (6, 5))])
def test_unmirrored_windows_are_the_same_at_once(
    dtype: torch.dtype, here: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (40, 3, *here), generator=generator).to(dtype)
    row, column = (
        torch.randint(side + 2 * pad - cut + 1, (40,), generator=generator)
        for side, pad, cut in zip(here, padding, size, strict=True)
    )
    draws = row, column, torch.zeros(40).bool(), padding, size
    windows = crop_by_view(image, *draws)

    assert torch.equal(crop_by_slices(image, *draws), windows)
    assert windows.is_contiguous()


def test_windows_are_drawn_as_by_torchvision() -> None:
    """An image that holds its own row and column numbers tells where the window was."""
    here = torch.arange(1, 25).view(1, 4, 6).repeat(2, 1, 1)
    image = torch.stack([here[0] // 6 + 1, here[1] % 6 + 1]).to(torch.uint8)
    images = torch.cat([image, image[:1]])[None].repeat(20_000, 1, 1, 1)
    cut = ShiftCrop(padding=2, size=(3, 5))(images, torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        crop = RandomCrop((3, 5), padding=2)
        theirs = torch.stack([crop(images[0]) for _ in range(3_000)])

    assert apart(*(windows[:, :2, ::2, ::2].flatten(1) for windows in (cut, theirs))) < 4


def test_one_image_in_two_is_mirrored() -> None:
    """4 standard errors of a share of one half in 10,000 images are 0.02."""
    images = torch.tensor([0, 1], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    flipped = ShiftCrop(flip=True)(images, torch.Generator().manual_seed(0))[:, 0, 0, 0]

    assert flipped.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(ShiftCrop()(images), images)


def test_auto_pads_an_eighth_only_along_sides_that_the_window_fills() -> None:
    images = torch.ones(400, 1, 16, 20, dtype=torch.uint8)
    cut = ShiftCrop(padding="auto", size=16)(images, torch.Generator().manual_seed(0))[:, 0].long()

    assert cut.shape == (400, 16, 16)
    assert set(cut.amax(2).sum(1).tolist()) == {14, 15, 16}
    assert set(cut.amax(1).sum(1).tolist()) == {16}


def test_the_largest_and_the_smallest_number_stay_inside() -> None:
    images = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).repeat(2, 1, 1, 1)
    first, last = ShiftCrop(size=2).apply(images, torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]]))

    assert first.tolist() == [[[1, 2], [5, 6]]]
    assert last.tolist() == [[[11, 12], [15, 16]]]


@CROPS
def test_the_input_is_left_alone(crop: Callable[..., Tensor]) -> None:
    image = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    crop(image, torch.zeros(2).long(), torch.zeros(2).long(), torch.ones(2).bool(), (2, 2), (4, 4)).zero_()
    ShiftCrop()(image).zero_()

    assert (image == 7).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padding": -1}, 'ShiftCrop: padding is -1; give a whole number of at least 0, or "auto".'),
        ({"padding": True}, 'ShiftCrop: padding is True; give a whole number of at least 0, or "auto".'),
        ({"padding": "mirror"}, "ShiftCrop: padding is 'mirror'; give a whole number of at least 0, or \"auto\"."),
        ({"size": 0}, "ShiftCrop: size is 0; give one side or height and width, pixels, at least 1."),
        ({"size": True}, "ShiftCrop: size is True; give one side or height and width"),
        ({"size": (3, 4, 5)}, "ShiftCrop: size is (3, 4, 5); give one side or height and width"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ShiftCrop(**settings)


def test_a_window_larger_than_the_images_is_refused() -> None:
    message = "ShiftCrop: size is 9 x 9 and the images are 4 x 20, padded by 2; give larger images or a smaller size"
    with pytest.raises(ValueError, match=message):
        ShiftCrop(padding=2, size=9)(torch.zeros(1, 3, 4, 20, dtype=torch.uint8))
