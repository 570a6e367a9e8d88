"""Training with a few labelled images of every class: which they are, and what stays whole."""

from inspect import signature

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from lightning_vision.catalogue import entries
from lightning_vision.datamodules import CSVImages, Digits, ImageFolder, PlacedDigits, from_datasets
from lightning_vision.datamodules.common._split import few_labelled

LABELLED = ["CIFAR10", "CIFAR100", "CINIC10", "CSVImages", "Digits", "ImageFolder", "PlacedDigits", "from_datasets"]


def samples(count=30, classes=3):
    return TensorDataset(torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8), torch.arange(count) % classes)


def seen(data, epoch=0):
    """Labels and images of an epoch of training, in the order of the loader."""
    data.setup()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    parts = list(loader)
    return torch.cat([target for _, target, _ in parts]), torch.cat([image for image, _, _ in parts])


@pytest.mark.parametrize("kind", [Digits, PlacedDigits])
def test_so_many_of_every_class_are_trained_on_in_every_epoch(kind):
    data, whole = kind(labels_per_class=3), kind()
    labels = [seen(data, epoch)[0] for epoch in (0, 1)]
    assert all(it.bincount(minlength=10).tolist() == [3] * 10 for it in labels)
    whole.setup()
    for split in ("val", "test", "predict"):
        assert torch.equal(getattr(data, f"{split}_set").targets, getattr(whole, f"{split}_set").targets)
    # Images that are normalised otherwise would be other images to a network that was pretrained on all.
    assert data.statistics == whole.statistics
    assert data.class_counts["train"] == dict.fromkeys(data.class_names, 3)


def test_which_they_are_is_a_function_of_the_split_seed():
    def images(**seeds):
        return {bytes(it.numpy().tobytes()) for it in seen(Digits(labels_per_class=2, **seeds))[1]}

    digits = Digits(labels_per_class=2)
    digits.setup()
    every = {bytes(it.numpy().tobytes()) for it in digits.all_train_images.images}
    assert images() == images(seed=5) <= every
    assert images() != images(split_seed=1)


def test_fewer_are_a_part_of_more():
    targets = torch.arange(60) % 4
    few, more, other = (few_labelled(targets, *it, "it") for it in ((3, 4, 0), (5, 4, 0), (3, 4, 1)))
    assert set(few.tolist()) < set(more.tolist()) and set(other.tolist()) != set(few.tolist())


def test_files_are_chosen_like_samples(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.new("L", (4, 4), number).save(tmp_path / name / f"{number}.png")
    folder = ImageFolder(tmp_path, image_size=4, val_fraction=0.2, test_fraction=0.2, labels_per_class=2)
    assert folder.class_counts == {
        "train": {"cat": 2, "dog": 2},
        "val": {"cat": 1, "dog": 1},
        "test": {"cat": 1, "dog": 1},
    }
    assert len(folder.train_set.paths) == 4
    rows = "".join(f"{name}/{number}.png,{name}\n" for name in ("cat", "dog") for number in range(6))
    (tmp_path / "them.csv").write_text(f"path,label\n{rows}")
    table = CSVImages(tmp_path / "them.csv", image_size=4, labels_per_class=1)
    assert table.class_counts["train"] == {"cat": 1, "dog": 1}


def test_samples_of_a_dataset_keep_their_images():
    dataset = samples()
    labels, images = seen(from_datasets(dataset, num_classes=3, labels_per_class=2))
    assert labels.bincount().tolist() == [2, 2, 2]
    for image, label in zip(images, labels, strict=True):
        place = (dataset.tensors[0] == image).flatten(1).all(1).nonzero()[0]
        assert dataset.tensors[1][place] == label


def test_a_class_with_fewer_images_is_named():
    data = from_datasets(samples(10), num_classes=3, labels_per_class=4)
    with pytest.raises(ValueError, match="labels_per_class is 4, but class 1 of DatasetsModule has 3 training images"):
        data.setup()


def test_what_has_no_single_known_class_is_refused():
    labels = torch.eye(3).repeat(4, 1)
    several = from_datasets(TensorDataset(torch.zeros(12, 1, 4, 4), labels), num_classes=3, labels_per_class=1)
    with pytest.raises(ValueError, match="chooses images by their one class"):
        several.setup()
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number of at least 1"):
            Digits(labels_per_class=wrong)


@pytest.mark.parametrize("name", LABELLED)
def test_it_is_the_last_argument_so_that_positions_stay(name):
    kind = next(entry.load() for entry in entries() if entry.name == name)
    assert list(signature(kind).parameters)[-1] == "labels_per_class"
