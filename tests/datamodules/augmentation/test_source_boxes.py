"""The box of its image that an augmented image shows: read off images whose pixels are their own coordinates."""

import pytest
import torch
from torch import Tensor

from lightning_vision.datamodules.augmentation import (
    Augmentation,
    AugMix,
    Chain,
    ColorJitter,
    RandAugment,
    RandomErasing,
    ResizedCrop,
    ShiftCrop,
    TrivialAugment,
    policy,
)

# Rows and columns as grey values; a step of 4 keeps interpolated ones apart.
SIZE = (48, 60)
MAPS = torch.stack([4 * torch.arange(48)[:, None].expand(SIZE), 4 * torch.arange(60).expand(SIZE)])


def shown(augmentation: Augmentation, uniform: Tensor, axis: int) -> Tensor:
    """What row or column numbers the middle line of each result has, float `(B, side)`."""
    images = MAPS[axis].to(torch.uint8)[None, None].repeat(len(uniform), 1, 1, 1)
    result = augmentation.apply(images, uniform)[:, 0].float() / 4
    middle = result.shape[2 - axis] // 2
    return result[:, :, middle] if axis == 0 else result[:, middle]


@pytest.mark.parametrize(
    "augmentation",
    [
        ResizedCrop(40),
        ResizedCrop(flip=False),
        ShiftCrop(size=(30, 40), flip=True),
        ShiftCrop(size=24),
        Chain([ShiftCrop(size=(40, 44), flip=True), ResizedCrop(40, scale=(0.3, 1.0))]),
        Chain([ResizedCrop(44, scale=(0.5, 1.0)), ShiftCrop(size=36, flip=True), RandomErasing(0.0)]),
    ],
    ids=["resized", "resized unmirrored", "window", "window unmirrored", "window of window", "window of resized"],
)
def test_a_box_is_what_the_pixels_say_they_are(augmentation: Augmentation) -> None:
    uniform = torch.rand(64, augmentation.draws, generator=torch.Generator().manual_seed(0))
    boxes = augmentation.source_boxes(uniform, SIZE)
    for axis, (first, last) in enumerate(((boxes[:, 1], boxes[:, 3]), (boxes[:, 0], boxes[:, 2]))):
        line = shown(augmentation, uniform, axis)
        places = (torch.arange(line.shape[1]) + 0.5) / line.shape[1]
        expected = first[:, None] + (last - first)[:, None] * places - 0.5
        inner = slice(4, -4)  # at the border resizing has no pixels to read beyond the box

        assert (line - expected)[:, inner].abs().max() < 1.0
        assert (line - expected)[:, inner].mean().abs() < 0.3
    assert ((boxes[:, 0] > boxes[:, 2]).any()) == (getattr(augmentation, "flip", True))


def test_a_window_over_the_border_has_a_box_beyond_the_image() -> None:
    uniform = torch.tensor([[0.0, 0.99, 0.9], [0.0, 0.99, 0.1]])

    assert ShiftCrop(padding=3, flip=True).source_boxes(uniform, (8, 10)).tolist() == [[3, -3, 13, 5], [7, -3, -3, 5]]


def test_what_leaves_pixels_in_their_place_shows_the_whole_image() -> None:
    for augmentation in (ColorJitter(0.4), RandomErasing(1.0), Chain([]), Chain([ColorJitter(), RandomErasing()])):
        boxes = augmentation.source_boxes(torch.rand(2, augmentation.draws), (8, 10))

        assert boxes.tolist() == [[0, 0, 10, 8], [0, 0, 10, 8]]


def test_sizes_follow_through_a_chain() -> None:
    chain = Chain([ShiftCrop(size=(40, 44)), ColorJitter(), ResizedCrop(24), ShiftCrop(padding=2)])

    assert chain.size_after(SIZE) == (24, 24)
    assert chain.apply(torch.zeros(1, 3, *SIZE, dtype=torch.uint8), torch.rand(1, chain.draws)).shape[2:] == (24, 24)


@pytest.mark.parametrize("augmentation", [RandAugment(), TrivialAugment(), AugMix(), policy("strong", (32, 32))])
def test_what_turns_images_has_no_box(augmentation: Augmentation) -> None:
    with pytest.raises(ValueError, match=r"^\w+ moves pixels and tells no box of what an image still shows; give an"):
        augmentation.source_boxes(torch.zeros(1, augmentation.draws), (32, 32))
