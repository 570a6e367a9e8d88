"""Chains: their stages one after the other; and what holds for every augmentation that this folder's tests own."""

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_vision.datamodules.augmentation import (
    Augmentation,
    Chain,
    ColorJitter,
    RandomErasing,
    ResizedCrop,
    ShiftCrop,
)

ALL = {
    "shift_crop": ShiftCrop(padding=3, flip=True),
    "window": ShiftCrop(padding="auto", flip=True, size=(8, 16)),
    "resized_crop": ResizedCrop(size=(9, 14)),
    "color_jitter": ColorJitter(0.4, 0.4, 0.4, 0.1),
    "black": RandomErasing(prob=0.8),
    "noise": RandomErasing(prob=0.8, value="noise"),
    "chain": Chain([ResizedCrop(12), ColorJitter(0.4, 0.4, 0.4), RandomErasing()]),
    "nothing": Chain([]),
}
EACH = pytest.mark.parametrize("augmentation", ALL.values(), ids=ALL)


def random_batch(augmentation: Augmentation, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (12, channels, 13, 17), dtype=torch.uint8, generator=generator)
    return images, torch.rand(12, augmentation.draws, generator=generator)


def test_stages_act_one_after_the_other_with_numbers_of_their_own() -> None:
    crop, jitter = ResizedCrop(12), ColorJitter(0.4, 0.4)
    chain = Chain([crop, jitter])
    images, uniform = random_batch(chain)

    assert chain.draws == crop.draws + jitter.draws
    assert torch.equal(jitter.apply(crop.apply(images, uniform[:, :-5]), uniform[:, -5:]), chain.apply(images, uniform))


@EACH
@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "colour"])
def test_an_image_does_not_depend_on_its_neighbours(augmentation: Augmentation, channels: int) -> None:
    images, uniform = random_batch(augmentation, channels)
    together = augmentation.apply(images, uniform)
    alone = torch.cat([augmentation.apply(images[k : k + 1], uniform[k : k + 1]) for k in range(len(images))])

    assert torch.equal(alone, together)
    assert torch.equal(augmentation.apply(images.flip(0), uniform.flip(0)).flip(0), together)


@EACH
def test_images_are_left_alone_and_bytes_come_back(augmentation: Augmentation) -> None:
    images, uniform = random_batch(augmentation)
    before, numbers = images.clone(), uniform.clone()
    result = augmentation.apply(images, uniform)

    assert torch.equal(before, images) and torch.equal(numbers, uniform)
    assert result.dtype == torch.uint8
    assert result.shape[:2] == (12, 3)


@EACH
def test_the_memory_format_does_not_matter(augmentation: Augmentation) -> None:
    images, uniform = random_batch(augmentation)
    expected = augmentation.apply(images, uniform)

    assert torch.equal(expected, augmentation.apply(images.to(memory_format=torch.channels_last), uniform))
    assert torch.equal(expected, augmentation.apply(images.repeat_interleave(2, 3)[..., ::2], uniform))


@EACH
def test_an_empty_batch_stays_empty(augmentation: Augmentation) -> None:
    images, uniform = random_batch(augmentation)

    assert augmentation.apply(images[:0], uniform[:0]).shape == (0, *augmentation.apply(images, uniform).shape[1:])


@EACH
def test_calling_it_draws_from_the_generator_alone(augmentation: Augmentation) -> None:
    images, _ = random_batch(augmentation)
    before = torch.get_rng_state()
    first, second = (augmentation(images, torch.Generator().manual_seed(7)) for _ in range(2))

    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@EACH
@pytest.mark.parametrize(
    ("form", "dtype", "message"),
    [
        ((2, 3, 13, 17), torch.float32, r": images is float32; give bytes \(uint8, 0..255\), as they are before"),
        ((2, 4, 13, 17), torch.uint8, r": images is of shape \(2, 4, 13, 17\); give \(B, C, H, W\) with C 1 or 3"),
        ((3, 13, 17), torch.uint8, r": images is of shape \(3, 13, 17\); give \(B, C, H, W\) with C 1 or 3"),
    ],
)
def test_other_images_are_refused(
    augmentation: Augmentation, form: tuple[int, ...], dtype: torch.dtype, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation(torch.zeros(form).to(dtype))


@EACH
def test_too_few_numbers_are_refused(augmentation: Augmentation) -> None:
    images, uniform = random_batch(augmentation)
    with pytest.raises(ValueError, match=f"; give {augmentation.draws} numbers for each of the 12 images"):
        augmentation.apply(images, torch.cat([uniform, torch.zeros(12, 1)], 1))


def test_strangers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Chain: stages has Linear in it; give augmentations"):
        Chain([ShiftCrop(), torch.nn.Linear(1, 1)])


def test_settings_survive_yaml() -> None:
    stages = [
        {"class_path": "ShiftCrop", "init_args": {"padding": "auto", "size": [8, 9]}},
        {"class_path": "ResizedCrop", "init_args": {"size": 10, "scale": [0.2, 1.0]}},
        {"class_path": "ColorJitter", "init_args": {"brightness": 0.4, "hue": [-0.1, 0.2]}},
        {"class_path": "RandomErasing", "init_args": {"value": "noise"}},
    ]
    for stage in stages:
        stage["class_path"] = f"lightning_vision.datamodules.augmentation.{stage['class_path']}"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Augmentation, "augment")
    chain = {"class_path": "lightning_vision.datamodules.augmentation.Chain", "init_args": {"stages": stages}}
    config = parser.parse_object({"augment": chain})
    again = parser.parse_string(parser.dump(config))
    shift, crop, jitter, erasing = parser.instantiate_classes(again).augment.stages

    assert (shift.padding, shift.size, crop.size, crop.scale) == ("auto", (8, 9), (10, 10), (0.2, 1.0))
    assert (jitter.brightness, jitter.hue, erasing.value) == ((0.6, 1.4), (-0.1, 0.2), "noise")
