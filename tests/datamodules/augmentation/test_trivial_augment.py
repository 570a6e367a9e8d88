"""TrivialAugment: torchvision's images from torchvision's draws, and its space."""

from collections import Counter

import pytest
import torch
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import TrivialAugment
from lightning_vision.datamodules.augmentation._steps import apply_by_batch
from support.photos import sample_photo

REFERENCE = v2.TrivialAugmentWide._AUGMENTATION_SPACE


def draws_of_torchvision(seed: int, bins: int) -> list[float]:
    """What torchvision draws from torch's global stream with this seed, as the numbers that `apply` takes."""
    torch.manual_seed(seed)
    which = int(torch.randint(len(REFERENCE), ()))
    make, signed = list(REFERENCE.values())[which]
    strength = (int(torch.randint(bins, ())) + 0.5) / bins if make(bins, 1, 1) is not None else 0.0
    return [(which + 0.5) / len(REFERENCE), strength, float(torch.rand(())) if signed else 0.0]


@pytest.mark.parametrize("bins", [31, 4])
def test_the_same_seed_gives_torchvisions_image_of_a_photo(bins: int) -> None:
    reference, augment = v2.TrivialAugmentWide(bins), TrivialAugment(bins)
    image = sample_photo(1, 64, 81)
    uniform = torch.tensor([draws_of_torchvision(seed, bins) for seed in range(150)])
    expected = []
    for seed in range(150):
        torch.manual_seed(seed)
        expected.append(reference(image))

    assert torch.equal(torch.stack(expected), augment.apply(image.repeat(150, 1, 1, 1), uniform))


def test_operations_strengths_and_signs_are_torchvisions_and_equally_likely() -> None:
    """Counted over a grid of all numbers, so exactly."""
    grid = [(torch.arange(size) + 0.5) / size for size in (14, 31, 2)]
    plans = TrivialAugment().plans(torch.cartesian_prod(*grid), (100, 80))
    expected: Counter[tuple[str, float]] = Counter()
    for name, (make, signed) in REFERENCE.items():
        values = make(31, 100, 80)
        for strength in [0.0] * 31 if values is None else [float(value) for value in values]:
            expected += Counter([(name, strength), (name, -strength if signed else strength)])

    assert expected == Counter(step for plan in plans for step in plan)


def test_the_way_of_other_devices_gives_the_same_images() -> None:
    augment, batch = TrivialAugment(), sample_photo(1, 64, 81).repeat(80, 1, 1, 1)
    uniform = torch.rand(80, augment.draws, generator=torch.Generator().manual_seed(4))

    assert torch.equal(
        augment.apply(batch, uniform), apply_by_batch(batch, augment.plans(uniform, (64, 81)), "nearest", 0)
    )


def test_a_single_bin_is_refused() -> None:
    with pytest.raises(ValueError) as error:
        TrivialAugment(num_magnitude_bins=1)

    assert str(error.value) == "TrivialAugment: num_magnitude_bins is 1; give a whole number of at least 2."
