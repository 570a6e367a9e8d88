"""CIFAR: tiny files in the authors' format, read as torchvision reads them, refused when they are anything else."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision

from lightning_vision.datamodules.cifar import CIFAR10, CIFAR100
from lightning_vision.datamodules.common._sets import ArrayImages

SIZE = 20


def write(path: Path, labels: str, classes: int, count: int, seed: int) -> None:
    """One file as the authors wrote theirs: protocol 2, rows of 3072 bytes, red first."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = {
        "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        labels: rng.permutation(np.arange(count) % classes).tolist(),
        "batch_label": "part",
    }
    path.write_bytes(pickle.dumps(batch, protocol=2))


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    for number in range(1, 6):
        write(folder / f"data_batch_{number}", "labels", 10, SIZE, number)
    write(folder / "test_batch", "labels", 10, 10, 9)
    return tmp_path


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-python"
    write(folder / "train", "fine_labels", 100, 200, 0)
    write(folder / "test", "fine_labels", 100, 100, 1)
    names = [f"class {number}" for number in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": []}, protocol=2))
    return tmp_path


def images_of(data: CIFAR10 | CIFAR100, split: str) -> ArrayImages:
    data.setup()
    images = getattr(data, f"{split}_set")
    assert isinstance(images, ArrayImages)
    return images


def sums(*names: Path) -> list[list[str]]:
    return [[path.name, hashlib.md5(path.read_bytes()).hexdigest()] for path in names]


def test_images_and_labels_are_those_torchvision_reads(cifar10: Path) -> None:
    folder = cifar10 / "cifar-10-batches-py"
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10().class_names}, protocol=2))

    class Verified(torchvision.datasets.CIFAR10):
        train_list = sums(*sorted(folder.glob("data_batch_*")))
        test_list = sums(folder / "test_batch")
        meta: ClassVar = {**torchvision.datasets.CIFAR10.meta, "md5": sums(folder / "batches.meta")[0][1]}

    ours = images_of(CIFAR10(cifar10, val_fraction=0), "train"), images_of(CIFAR10(cifar10), "test")
    for train, images in zip((True, False), ours, strict=True):
        theirs = Verified(cifar10, train=train)

        assert np.array_equal(theirs.data, images.images.permute(0, 2, 3, 1).numpy())
        assert theirs.targets == images.targets.tolist()
    assert list(theirs.class_to_idx) == CIFAR10().class_names


def test_a_stratified_tenth_of_the_training_images_validates(cifar10: Path) -> None:
    counts = CIFAR10(cifar10).class_counts

    assert list(counts["train"].values()) == [9] * 10
    assert list(counts["val"].values()) == [1] * 10
    assert list(counts["test"].values()) == [1] * 10


def test_no_validation_image_is_trained(cifar10: Path) -> None:
    parts = [images_of(CIFAR10(cifar10), split).images for split in ("train", "val", "test")]
    hashes = [{hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in part} for part in parts]

    assert 110 == len(set.union(*hashes)) == sum(map(len, hashes))


def test_without_validation_all_images_train(cifar10: Path) -> None:
    data = CIFAR10(cifar10, val_fraction=0)

    assert len(images_of(data, "train")) == 100
    assert data.val_dataloader() == []


def test_cifar100_has_a_hundred_fine_classes_named_by_its_meta_file(cifar100: Path) -> None:
    data = CIFAR100(cifar100, val_fraction=0.5)

    assert 100 == data.num_classes == len(data.class_names)
    assert data.class_names[42] == "class 42"
    assert tuple(list(counts.values()) for counts in data.class_counts.values()) == ([1] * 100,) * 3


def test_the_published_statistics_leave_the_device_normalised(cifar10: Path) -> None:
    data = CIFAR10(cifar10, augment="none")
    image, _, _ = next(iter(data.test_dataloader()))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))

    assert torch.allclose(image / 255, data.normalise(image) * std + mean, atol=1e-6)
    assert torch.equal(image, data.augment(image, torch.arange(len(image)), 0))


def test_number_of_classes_is_known_without_files() -> None:
    assert (CIFAR10("nowhere").num_classes, CIFAR100("nowhere").num_classes) == (10, 100)


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (CIFAR10("nowhere"), "nowhere/cifar-10-batches-py/data_batch_1"),
        (CIFAR100("nowhere"), "nowhere/cifar-100-python/train"),
    ],
)
def test_missing_files_are_one_sentence(data: CIFAR10 | CIFAR100, missing: str) -> None:
    message = f"^{type(data).__name__} needs {missing}, which is not there; pass download=True or the right root$"
    with pytest.raises(FileNotFoundError, match=message):
        data.setup()


def test_nothing_is_downloaded_unasked() -> None:
    CIFAR10("nowhere").prepare_data()

    assert os.listdir() == []


def test_a_pickle_that_would_run_code_is_refused_not_run(cifar10: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("exploded",)

    path = cifar10 / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({"data": Bomb(), "labels": []}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3 is damaged or .* CIFAR10: it asks for posix\.mkdir"):
        CIFAR10(cifar10).setup()

    assert not Path("exploded").exists()


def test_a_truncated_file_is_named(cifar10: Path) -> None:
    path = cifar10 / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"data_batch_2 is damaged or is not a file of CIFAR10: "):
        CIFAR10(cifar10).setup()


def test_a_label_outside_the_range_is_named_with_its_file(cifar10: Path) -> None:
    write(cifar10 / "cifar-10-batches-py" / "data_batch_4", "labels", 11, 11, 0)
    with pytest.raises(ValueError, match=r"^data_batch_4: label 10 of sample \d+ is outside 0\.\.9; "):
        CIFAR10(cifar10).setup()


def test_files_of_another_dataset_are_refused(cifar10: Path) -> None:
    write(cifar10 / "cifar-10-batches-py" / "test_batch", "fine_labels", 10, 10, 0)
    with pytest.raises(ValueError, match=r"cifar-10-batches-py does not hold CIFAR10's files$"):
        CIFAR10(cifar10).setup()


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="must be at least 0 and below 1"):
        CIFAR10(val_fraction=fraction)
