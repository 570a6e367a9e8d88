"""A datamodule whose test images are corrupted before they are normalised."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_vision.base.module import changed_preprocessing, shortened
from lightning_vision.commands._usage import explain, unwrapped
from lightning_vision.configs import find_config, read_config
from lightning_vision.datamodules.common._sets import Fetched, ImageSet
from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.robustness.corruptions import SMALLEST, corrupt_images

__all__ = ["build_data", "check_corruptible", "check_same_classes", "corrupted_test", "data_of_config", "other_size"]


class CorruptedImages(ImageSet):
    """A set whose images are corrupted when they are fetched; labels and boxes stay.

    Args:
        images: The set; its images are uint8.
        corruption: A name in `CORRUPTIONS`.
        severity: 1..5.
        seed: With the position of a sample, fixes what is drawn for it.
    """

    def __init__(self, images: ImageSet, corruption: str, severity: int, seed: int) -> None:
        self.images, self.corruption, self.severity, self.seed = images, corruption, severity, seed
        self.targets, self.answers = images.targets, images.answers

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        found = self.images.fetch(index, epoch)
        sample = found.index % len(self)
        return replace(found, image=corrupt_images(found.image, self.corruption, self.severity, sample, self.seed))


@contextmanager
def corrupted_test(datamodule: VisionDataModule, corruption: str, severity: int, seed: int) -> Iterator[None]:
    """While it lasts, `datamodule` tests on corrupted images."""
    images = datamodule.test_set
    assert images is not None
    datamodule.test_set = CorruptedImages(images, corruption, severity, seed)
    try:
        yield
    finally:
        datamodule.test_set = images


def check_corruptible(datamodule: LightningDataModule) -> VisionDataModule:
    """`datamodule`, set up, if its test images can be corrupted.

    Raises:
        ValueError: it is not of this package, has no test images, or they are no bytes.
    """
    source = type(datamodule).__name__
    if not isinstance(datamodule, VisionDataModule):
        raise ValueError(
            f"{source} is no VisionDataModule, so its images cannot be reached before they are normalised; read them "
            "with one of `lightning_vision list datamodules`, or apply `corrupt_images` in its own test loader"
        )
    datamodule.prepare_data()
    datamodule.setup("test")
    if datamodule.test_set is None:
        raise ValueError(f"{source} has no test images to corrupt; give it some")
    image = datamodule.test_set.fetch(torch.arange(1)).image
    if image.dtype != torch.uint8 or image.shape[1] not in (1, 3) or min(image.shape[2:]) < SMALLEST:
        channels, height, width = image.shape[1:]
        raise ValueError(
            f"{source} gives {image.dtype} images of {channels} x {height} x {width}, and corruptions are for uint8 "
            f"with 1 or 3 channels and sides of at least {SMALLEST}"
        )
    return datamodule


def check_same_classes(model: str, module: Any, trained: Any, data: str, datamodule: VisionDataModule) -> None:
    """Refuse data of other classes or channels than a model was made for, before anything is measured.

    Args:
        model: What the model is called.
        module: It.
        trained: The preprocessing of its checkpoint, None without one.
        data: What the data is called.
        datamodule: It.

    Raises:
        ValueError: they do not agree.
    """
    for size in ("num_classes", "in_channels"):
        own, found = getattr(module, size, None), getattr(datamodule, size)
        if own not in (None, found):
            raise ValueError(f"{model} has {size}={own} but {data} has {size}={found}; make them agree")
    if names := changed_preprocessing(trained, datamodule).get("class_names"):
        ours, theirs = (shortened(each) for each in names)
        raise ValueError(f"{model} was trained on the classes {ours}, {data} has {theirs}; give data of the same")


def build_data(described: dict[str, Any], origin: str) -> LightningDataModule:
    """The datamodule that `class_path` and `init_args` describe.

    Args:
        described: As a config's `data` entry.
        origin: Where it comes from, for errors.

    Raises:
        ValueError: the description does not fit the class, or the class refuses it.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        config = parser.parse_object({"data": described})
    except ArgumentError as error:
        raise ValueError(f"{origin}: {explain(str(error), parser)}") from error
    try:
        datamodule: LightningDataModule = parser.instantiate(config).data
    except Exception as error:
        raise ValueError(f"{origin}: {unwrapped(error)}") from error
    return datamodule


def other_size(cli: Any, size: int) -> LightningDataModule:
    """The datamodule of the command line, made anew with images of `size` pixels a side.

    Raises:
        ValueError: its images have one size only.
    """
    source = type(cli.datamodule)
    if "image_size" not in inspect.signature(source).parameters:
        raise ValueError(f"--sizes: images of {source.__name__} have one size, for it takes no image_size")
    described = cli.config.data.as_dict()
    described = {**described, "init_args": {**(described.get("init_args") or {}), "image_size": size}}
    return build_data(described, f"--sizes {size}")


def data_of_config(name: str) -> LightningDataModule:
    """The datamodule of the `data` entry of a config, a file or the name of a shipped one.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it has no `data` entry, or one that does not fit.
    """
    path: Path = find_config(name)
    described = read_config(path).get("data")
    if isinstance(described, str):
        described = {"class_path": described}
    if not isinstance(described, dict):
        raise ValueError(f"--elsewhere {name}: the config has no data entry to test on")
    return build_data(described, f"--elsewhere {name}")
