"""CINIC-10 on a miniature tree: classes, counts, splits, origins, statistics, and a classifier trained on it."""

import colorsys
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor

from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules.cinic10 import CINIC10

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SPLITS = {"train": "train", "valid": "val", "test": "test"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Each split and class has two images of CIFAR-10 and four of ImageNet, in the colour of the class."""
    for split in SPLITS:
        for label, name in enumerate(CLASSES):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            names = [f"cifar10-{split}-{label}{number}" for number in range(2)]
            names += [f"n0{label:07}_{number}" for number in range(4)]
            for shade, file in enumerate(names):
                colour = colorsys.hsv_to_rgb(label / 10, 1, 0.7 + shade / 20)
                Image.new("RGB", (32, 32), tuple(round(255 * part) for part in colour)).save(folder / f"{file}.png")
    return tmp_path


def names_of(data: CINIC10, split: str) -> list[str]:
    data.setup()
    return [Path(path).name for path in getattr(data, f"{split}_set").paths]


@pytest.mark.parametrize(("origin", "each"), [("all", 6), ("cifar10", 2), ("imagenet", 4)])
def test_row_198(origin: Any, each: int, root: Path) -> None:
    data = CINIC10(root, origin=origin, batch_size=20)
    merged = CINIC10(root, origin=origin, merge_train_valid=True)
    prefixes = {"all": "cifar10-|n0", "cifar10": "cifar10-", "imagenet": "n0"}

    assert data.class_names == CLASSES
    assert data.class_counts == {split: dict.fromkeys(CLASSES, each) for split in SPLITS.values()}
    assert all(re.match(prefixes[origin], name) for split in SPLITS.values() for name in names_of(data, split))
    assert merged.class_counts == {"train": dict.fromkeys(CLASSES, 2 * each), "test": dict.fromkeys(CLASSES, each)}
    assert sorted(names_of(data, "train") + names_of(data, "val")) == sorted(names_of(merged, "train"))
    assert merged.val_dataloader() == []

    image, target, _ = next(iter(data.test_dataloader()))
    mean = torch.tensor([0.47889522, 0.47227842, 0.43047404]).view(-1, 1, 1)
    std = torch.tensor([0.24205776, 0.23828046, 0.25874835]).view(-1, 1, 1)

    assert (image.dtype, tuple(image.shape), target.dtype) == (torch.uint8, (20, 3, 32, 32), torch.int64)
    assert torch.allclose((image / 255 - mean) / std, data.normalise(image), atol=1e-6)
    assert torch.allclose(data.normalise(image) * std + mean, image / 255, atol=1e-6)


def test_the_classifier_learns_from_it_unchanged(root: Path) -> None:
    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01)

    torch.manual_seed(0)
    module = ImageClassifier("resnet8_cifar", num_classes=10, optimizer=adam)
    data = CINIC10(root, batch_size=20)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=20,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        check_val_every_n_epoch=20,
    )
    trainer.fit(module, datamodule=data)
    (measured,) = trainer.test(module, datamodule=data, verbose=False)

    assert measured["test/acc"] > 0.8


def test_images_are_augmented_in_training_only_and_only_if_wanted(root: Path) -> None:
    data, plain = CINIC10(root), CINIC10(root, augment="none")
    image, index = torch.full((200, 3, 32, 32), 9, dtype=torch.uint8), torch.arange(200)

    def padded(images: Tensor) -> int:
        return int((images == 0).flatten(1).any(1).sum())

    assert padded(data.augment(image, index, 0)) > 150
    assert torch.equal(image, plain.augment(image, index, 0))


def test_without_normalisation_pixels_are_0_to_1(root: Path) -> None:
    data = CINIC10(root, normalize=False)

    assert data.normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).unique().tolist() == [1.0]
    assert data.preprocessing["mean"] == [0.0] * 3


def test_a_missing_class_folder_is_named(root: Path) -> None:
    for file in (root / "valid" / "frog").iterdir():
        file.unlink()
    (root / "valid" / "frog").rmdir()
    with pytest.raises(
        FileNotFoundError, match=rf"^there is no folder {re.escape(str(root / 'valid' / 'frog'))}; unpack"
    ):
        CINIC10(root).setup()


def test_an_origin_without_images_is_refused(root: Path) -> None:
    for file in root.glob("test/*/cifar10-*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"test holds no images of origin 'cifar10'$"):
        CINIC10(root, origin="cifar10").setup()


def test_an_unknown_origin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^origin 'svhn' must be one of all, cifar10, imagenet$"):
        CINIC10(origin="svhn")  # type: ignore[arg-type]  # that is the point
