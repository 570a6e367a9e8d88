"""Crop and flip: by hand, against torchvision at equal draws, the same on every path, each sample for itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.common._augment import (
    crop_and_flip,
    crop_by_gather,
    crop_by_slices,
)
from lightning_vision.images import rescale

CROPS = pytest.mark.parametrize("crop", [crop_and_flip, crop_by_slices, crop_by_gather])


@CROPS
def test_by_hand(crop: Callable[..., Tensor]) -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8)[None, None].repeat(4, 1, 1, 1)
    row, column = torch.tensor([1, 0, 2, 1]), torch.tensor([1, 1, 0, 2])
    flip = torch.tensor([False, False, False, True])
    same, down, up_right, flipped_left = crop(image, row, column, flip, 1)[:, 0].tolist()

    assert same == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert up_right == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]
    assert flipped_left == [[2, 1, 0], [5, 4, 0], [8, 7, 0]]


@CROPS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size", [(32, 32), (5, 9)])
def test_equals_torchvision_at_the_same_draws(
    crop: Callable[..., Tensor], dtype: torch.dtype, size: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (40, 3, *size), generator=generator).to(dtype)
    row, column = torch.randint(0, 9, (2, 40), generator=generator)
    flip = torch.rand(40, generator=generator) < 0.5
    expected = []
    for one, top, left, flipped in zip(image, row.tolist(), column.tolist(), flip.tolist(), strict=True):
        turned = reference.horizontal_flip(one) if flipped else one
        expected.append(reference.crop(reference.pad(turned, [4]), top, left, *size))

    assert torch.equal(torch.stack(expected), crop(image, row, column, flip, 4))


def test_the_input_is_left_alone() -> None:
    image = torch.full((2, 1, 4, 4), 7, dtype=torch.uint8)
    crop_and_flip(image, torch.zeros(2).long(), torch.zeros(2).long(), torch.ones(2).bool(), 2)
    floats = torch.ones(1, 1, 2, 2)
    rescale(floats, torch.full((1, 1, 1), 2.0), torch.ones(1, 1, 1))

    assert (image == 7).all()
    assert (floats == 1).all()


def test_normalise_by_hand() -> None:
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    scale, shift = torch.tensor([4.0, 2.0]) / 255, torch.tensor([1.0, -0.5])
    result = rescale(image, scale.view(-1, 1, 1), shift.view(-1, 1, 1))

    assert torch.float32 == result.dtype
    assert result.flatten().tolist() == [-1.0, 2.5]
