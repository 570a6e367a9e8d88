"""Distortions of colour: equal to torchvision's at equal draws; what moves pixels is refused."""

import re

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from lightning_vision.datamodules.augmentation import (
    Augmentation,
    Chain,
    ColorJitter,
    RandAugment,
    RandomErasing,
    ResizedCrop,
    ShiftCrop,
)
from lightning_vision.datamodules.detection import PhotometricDistortion, PixelsOnly
from support.boxes import rectangles


def test_pixels_are_torchvisions_at_the_same_draws() -> None:
    """Brightness, contrast before the others or after them, saturation, hue, channels: each where its number says."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (48, 3, 12, 16), dtype=torch.uint8, generator=generator)
    distort = PhotometricDistortion(prob=0.6)
    uniform = torch.rand(48, distort.draws, generator=generator)
    factors, _, channels = distort.factors(uniform, 3)
    expected = []
    for image, (light, contrast, saturation, turn), own, order in zip(
        images, factors.tolist(), uniform.tolist(), channels, strict=True
    ):
        image = reference.adjust_brightness(image, light) if own[4] < 0.6 else image
        before, after = own[5] < 0.6 and own[8] < 0.5, own[5] < 0.6 and own[8] >= 0.5
        image = reference.adjust_contrast(image, contrast) if before else image
        image = reference.adjust_saturation(image, saturation) if own[6] < 0.6 else image
        image = reference.adjust_hue(image, turn) if own[7] < 0.6 else image
        image = reference.adjust_contrast(image, contrast) if after else image
        expected.append(image[order] if own[9] < 0.6 else image)

    assert torch.equal(torch.stack(expected), distort.apply(images, uniform))


def test_factors_are_uniform_where_they_are_drawn() -> None:
    """4 standard errors in 20,000: of the share one half they are 0.015, of a contrast's mean 0.012."""
    distort = PhotometricDistortion()
    uniform = torch.rand(20_000, distort.draws, generator=torch.Generator().manual_seed(0))
    factors, order, channels = distort.factors(uniform, 3)
    contrast = factors[:, 1][factors[:, 1] != 1]

    assert len(contrast) / 20_000 == pytest.approx(0.5, abs=0.015)
    assert contrast.mean().item() == pytest.approx(1.0, abs=0.012)
    assert (contrast.min() >= 0.5, contrast.max() <= 1.5) == (True, True)
    assert (order[:, 1] == 1).double().mean().item() == pytest.approx(0.5, abs=0.015)
    # One half, and of the other half one in six, which is drawn as it was.
    assert (channels == torch.arange(3)).all(1).double().mean().item() == pytest.approx(7 / 12, abs=0.015)


def test_grey_images_have_light_and_contrast_alone() -> None:
    images, _ = rectangles(8, (12, 16))
    colours = PhotometricDistortion((1, 1), (1, 1), (0.5, 1.5), (-0.1, 0.1), prob=1.0)

    assert torch.equal(images, colours(images))
    assert not torch.equal(images // 2, PhotometricDistortion(prob=1.0)(images // 2))


def test_boxes_stay_and_pixels_are_those_of_the_augmentation() -> None:
    images, annotations = rectangles(8, (12, 16), channels=3)
    chain = Chain([ColorJitter(0.4, 0.4), RandomErasing(), PhotometricDistortion()])
    uniform = torch.rand(8, chain.draws)
    pixels, moved = PixelsOnly(chain).apply(images, annotations, uniform)

    assert moved is annotations
    assert torch.equal(chain.apply(images, uniform), pixels)


@pytest.mark.parametrize(
    "mover",
    [ShiftCrop(), ResizedCrop(), RandAugment(), Chain([ColorJitter(0.4), ResizedCrop()])],
    ids=lambda mover: type(mover).__name__,
)
def test_what_moves_pixels_is_refused(mover: Augmentation) -> None:
    message = f"PixelsOnly: augmentation is {type(mover).__name__}, which moves pixels, and the boxes would stay"
    with pytest.raises(ValueError, match=message):
        PixelsOnly(mover)


def test_what_is_no_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^PixelsOnly: augmentation is 'light'; give an Augmentation"):
        PixelsOnly("light")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hue": (-0.6, 0.1)}, "PhotometricDistortion: hue is [-0.6, 0.1]; give two numbers in order, from -0.5 to 0."),
        ({"contrast": (1.5, 0.5)}, "PhotometricDistortion: contrast is [1.5, 0.5]; give two numbers in order, from 0"),
        ({"prob": 3}, "PhotometricDistortion: prob is 3; give a fraction from 0 to 1."),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PhotometricDistortion(**settings)


def test_whether_a_chain_moves_pixels_is_none_of_its_settings() -> None:
    """Stored answers of teachers name the settings they were given with; a new one would part them from their data."""
    assert Chain([ColorJitter(), ShiftCrop()]).moves_pixels
    assert vars(Chain([])).keys() == {"stages", "draws"}
