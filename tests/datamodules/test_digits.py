"""The digits: real pixels, a split that nothing moves, and no test digit among the training digits."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from lightning_vision.datamodules.augmentation import Chain, ColorJitter, ShiftCrop
from lightning_vision.datamodules.common._sets import ArrayImages
from lightning_vision.datamodules.digits import Digits
from support import ROOT

SPLITS = ("train", "val", "test")


def images_of(data: Digits, split: str) -> ArrayImages:
    data.setup()
    images = getattr(data, f"{split}_set")
    assert isinstance(images, ArrayImages)
    return images


def digests(images: torch.Tensor) -> set[str]:
    return {hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images}


def test_pixels_are_those_of_scikit_learn_from_0_to_16_scaled_to_255() -> None:
    data, source = Digits(), load_digits()
    for split, part in zip(SPLITS, (data.setup(), data.splits)[1], strict=True):
        images = images_of(data, split)

        assert np.array_equal(np.round(source.images[part] * 255 / 16), images.images[:, 0].numpy())
        assert np.array_equal(source.target[part], images.targets)
    assert (images.images.min(), images.images.max()) == (0, 255)


def test_no_digit_is_in_two_splits_by_number_or_by_pixels() -> None:
    data = Digits()
    data.setup()
    numbers = [set(part.tolist()) for part in data.splits]
    hashes = [digests(images_of(data, split).images) for split in SPLITS]

    assert set(range(1797)) == set.union(*numbers)
    assert sum(map(len, numbers)) == 1797
    assert 1797 == len(set.union(*hashes)) == sum(map(len, hashes))


@pytest.mark.parametrize("split_seed", [0, 1, 7])
def test_the_splits_have_the_sizes_that_are_promised(split_seed: int) -> None:
    data = Digits(split_seed=split_seed)

    assert [len(images_of(data, split)) for split in SPLITS] == [1258, 180, 359]


def test_at_least_350_digits_test_and_each_class_has_its_share_to_within_one() -> None:
    data = Digits()
    counts, whole = data.class_counts, load_digits().target

    assert len(images_of(data, "test")) >= 350
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        exact = np.bincount(whole) * share

        assert np.abs(np.array(list(counts[split].values())) - exact).max() <= 1


def test_the_shipped_config_has_the_split_of_the_defaults() -> None:
    config = yaml.safe_load((ROOT / "cli_configs" / "classification" / "digits.yaml").read_text())["data"]
    shipped, default = Digits(**config["init_args"]), Digits()
    for split in SPLITS:
        assert torch.equal(images_of(default, split).images, images_of(shipped, split).images)


def test_the_split_depends_on_its_own_seed_alone() -> None:
    first, other = Digits(seed=0), Digits(seed=1, batch_size=7, shift=1)
    torch.manual_seed(99)

    assert torch.equal(images_of(first, "test").images, images_of(other, "test").images)
    assert not torch.equal(images_of(first, "test").images, images_of(Digits(split_seed=1), "test").images)


def test_another_process_has_the_same_split(two_ranks: Callable[..., Any]) -> None:
    def elsewhere() -> list[int]:
        torch.manual_seed(5)
        np.random.seed(5)
        data = Digits()
        data.setup("test")
        return data.splits[2].tolist()

    data = Digits()
    data.setup("fit")

    assert two_ranks(elsewhere) == [data.splits[2].tolist()] * 2


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    data = Digits()
    images = data.normalise(images_of(data, "train").images)

    assert abs(images.mean()) < 1e-5
    assert abs(images.std(correction=0) - 1) < 1e-5


def test_a_shift_moves_training_digits_by_up_to_that_many_pixels() -> None:
    data, index = Digits(shift=1), torch.arange(300)
    images = images_of(data, "train").images[:300]
    shifted = data.augment(images, index, 0)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    windows = [padded[:, :, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    matches = torch.stack([(window == shifted).flatten(1).all(1) for window in windows])

    assert matches.any(0).all()
    assert matches.any(1).all()
    assert torch.equal(images, Digits().augment(images, index, 0))


def test_an_augmentation_comes_after_the_shift() -> None:
    augmentation = Digits(shift=2, augment=ColorJitter(0.5)).augmentation

    assert isinstance(augmentation, Chain)
    assert [type(stage) for stage in augmentation.stages] == [ShiftCrop, ColorJitter]
    assert type(Digits(shift=2).augmentation) is ShiftCrop
    assert Digits().augmentation is None
