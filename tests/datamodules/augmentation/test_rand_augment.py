"""RandAugment: torchvision's images from torchvision's draws, and its space."""

from collections import Counter
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import RandAugment
from lightning_vision.datamodules.augmentation._steps import apply_by_batch
from support.photos import sample_photo

REFERENCE = v2.RandAugment._AUGMENTATION_SPACE


def draws_of_torchvision(seed: int, num_ops: int) -> list[float]:
    """What torchvision draws from torch's global stream with this seed, as the numbers that `apply` takes."""
    torch.manual_seed(seed)
    row = []
    for _ in range(num_ops):
        which = int(torch.randint(len(REFERENCE), ()))
        signed = list(REFERENCE.values())[which][1]
        row += [(which + 0.5) / len(REFERENCE), float(torch.rand(())) if signed else 0.0]
    return row


@pytest.mark.parametrize(("num_ops", "magnitude", "bins"), [(2, 9, 31), (1, 0, 2), (4, 10, 11), (3, 30, 31)])
def test_the_same_seed_gives_torchvisions_image_of_a_photo(num_ops: int, magnitude: int, bins: int) -> None:
    reference, augment = v2.RandAugment(num_ops, magnitude, bins), RandAugment(num_ops, magnitude, bins)
    image = sample_photo(1, 64, 81)
    uniform = torch.tensor([draws_of_torchvision(seed, num_ops) for seed in range(60)])
    expected = []
    for seed in range(60):
        torch.manual_seed(seed)
        expected.append(reference(image))

    assert torch.equal(torch.stack(expected), augment.apply(image.repeat(60, 1, 1, 1), uniform))


def test_operations_are_torchvisions_equally_likely_and_signs_too() -> None:
    """Counted over a grid of all numbers, so exactly."""
    grid = torch.cartesian_prod((torch.arange(28) + 0.5) / 28, (torch.arange(10) + 0.5) / 10)
    plans = RandAugment(num_ops=1, magnitude=9).plans(grid, (100, 80))
    expected: dict[tuple[str, float], int] = {}
    for name, (make, signed) in REFERENCE.items():
        values = make(31, 100, 80)
        strength = 0.0 if values is None else float(values[9])
        expected |= {(name, strength): 10, (name, -strength): 10} if signed else {(name, strength): 20}

    assert expected == Counter(step for plan in plans for step in plan)


def test_without_operations_the_images_stay() -> None:
    batch = sample_photo(1, 64, 81)[None]

    assert torch.equal(batch, RandAugment(num_ops=0)(batch))


def test_the_way_of_other_devices_gives_the_same_images() -> None:
    augment, batch = RandAugment(num_ops=3, magnitude=28), sample_photo(1, 64, 81).repeat(60, 1, 1, 1)
    uniform = torch.rand(60, augment.draws, generator=torch.Generator().manual_seed(4))

    assert torch.equal(
        augment.apply(batch, uniform), apply_by_batch(batch, augment.plans(uniform, (64, 81)), "nearest", 0)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ops": -1}, "num_ops is -1; give a whole number of at least 0."),
        ({"num_ops": 1.5}, "num_ops is 1.5; give a whole number of at least 0."),
        ({"magnitude": 31}, "magnitude is 31; give a whole number from 0 to 30."),
        ({"magnitude": -1}, "magnitude is -1; give a whole number from 0 to 30."),
        ({"num_magnitude_bins": 1}, "num_magnitude_bins is 1; give a whole number of at least 2."),
        ({"interpolation": None}, "interpolation is None; give nearest or bilinear."),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        RandAugment(**arguments)

    assert str(error.value) == f"RandAugment: {message}"


def test_a_strength_set_later_is_that_of_the_next_batch_and_between_two_bins_the_nearer_ones() -> None:
    batch = sample_photo(1, 64, 81).repeat(8, 1, 1, 1)
    uniform = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    augment = RandAugment(magnitude=9)
    for given, bin_ in ((20.0, 20), (20.4, 20), (20.5, 21), (0, 0), (30, 30)):
        augment.magnitude = given

        assert torch.equal(augment.apply(batch, uniform), RandAugment(magnitude=bin_).apply(batch, uniform))
        assert vars(augment)["magnitude"] == given  # by which a store of augmented images knows it


@pytest.mark.parametrize("given", [-0.5, 30.5])
def test_a_strength_set_later_has_the_same_range(given: float) -> None:
    with pytest.raises(ValueError, match=rf"^RandAugment: magnitude is {given}; give a number from 0 to 30\.$"):
        RandAugment().magnitude = given
