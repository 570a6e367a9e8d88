"""What sources of image files share: sizes, statistics, splits that are drawn, images to predict."""

import hashlib
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.images import EXTENSIONS, Resize, list_images

from ._sets import FileImages, ImageSet, OnBadImage
from ._split import iterative_split, stratified_split
from .datamodule import VisionDataModule

__all__ = ["IMAGENET", "SPLIT_NAMES", "FileSource", "Found", "height_and_width", "stable_key"]

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Splits, and what they are called in folders and tables."""

IMAGENET = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}

Found = tuple[list[str], dict[str, tuple[list[str], Tensor | None]]]


class FileSource(VisionDataModule):
    """Image files of any size, mode and format; a subclass says in `find` which there are and what they show.

    The arguments are those of `ImageFolder`, and in `loading` those of the base.
    """

    resize: Resize
    # For people, once `found` is known.
    split_origin: str = "Split: as the data say."

    def __init__(
        self,
        image_size: int | tuple[int, int],
        train_size: int | tuple[int, int] | None,
        eval_size: int | tuple[int, int] | None,
        channels: int,
        resize: Resize,
        on_bad_image: OnBadImage,
        val_fraction: float,
        test_fraction: float,
        split_seed: int,
        predict_root: str | Path | None,
        mean: list[float] | None,
        std: list[float] | None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on; give "
                "fractions of at least 0 whose sum is below 1"
            )
        if channels not in IMAGENET:
            raise ValueError(f"channels is {channels}; give 1 or 3")
        if resize not in ("crop", "squash") or on_bad_image not in ("error", "skip"):
            raise ValueError(
                f"resize is {resize!r} and on_bad_image {on_bad_image!r}; give crop or squash, and error or skip"
            )
        self.image_size = height_and_width(image_size)
        self.train_size, self.eval_size = (
            self.image_size if size is None else height_and_width(size) for size in (train_size, eval_size)
        )
        for name, size in (("train_size", self.train_size), ("eval_size", self.eval_size)):
            if size[0] < self.image_size[0] or size[1] < self.image_size[1]:
                raise ValueError(
                    f"{name} {_sides(size)} is smaller than image_size {_sides(self.image_size)}, which is cut out of "
                    "it; make it larger or leave it out"
                )
        self.in_channels, self.resize, self.on_bad_image = channels, resize, on_bad_image
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.predict_root = predict_root
        self._statistics = mean or IMAGENET[channels][0], std or IMAGENET[channels][1]

    @abstractmethod
    def find(self) -> Found:
        """Class names, and for each split that there is (also `predict`) paths and labels."""

    @cached_property
    def found(self) -> Found:
        """`find`, once."""
        return self.find()

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return self._statistics

    @property
    def class_names(self) -> list[str]:
        return self.found[0]

    @property
    def bank_set(self) -> ImageSet | None:
        images = self.train_set
        if not isinstance(images, FileImages) or self.eval_size is None or images.image_size == self.eval_size:
            return images
        return self._images_of(images.paths, images.targets, self.eval_size)

    def load(self) -> None:
        for split, (paths, targets) in self.found[1].items():
            size = self.train_size if split == "train" else self.eval_size
            setattr(self, f"{split}_set", self._images_of(paths, targets, size) if paths else None)
        if self.predict_root is not None:
            paths = list_images(self.predict_root)
            if not paths:
                raise ValueError(f"the folder {self.predict_root} holds no images; give some, {' '.join(EXTENSIONS)}")
            self.predict_set = self._images_of(paths, None, self.eval_size)
        self.predict_set = self.predict_set or self.test_set
        if isinstance(self.predict_set, FileImages):
            self.predict_paths = self.predict_set.paths

    def draw(
        self, paths: list[str], targets: Tensor, names: list[str], test: bool
    ) -> dict[str, tuple[list[str], Tensor]]:
        """Training, validation and, where it is wanted, test images, drawn out of all.

        Args:
            paths: The files.
            targets: Their labels, int64 `(N,)`, or 0 and 1 `(N, K)`.
            names: What identifies each file, wherever the data lie; they decide the draw together with `split_seed`.
            test: Draw a test set, too.
        """
        shares = {"train": 1 - self.val_fraction - (self.test_fraction if test else 0.0), "val": self.val_fraction}
        if test:
            shares["test"] = self.test_fraction
        what = f"{self.val_fraction:.0%} for validation" + (f", {self.test_fraction:.0%} for testing" if test else "")
        self.split_origin = f"Split: drawn class by class with split_seed {self.split_seed}, {what}."
        divide = stratified_split if targets.ndim == 1 else iterative_split
        keys = torch.tensor([stable_key(name) for name in names])
        parts = divide(targets, list(shares.values()), self.split_seed, keys)
        return {
            split: ([paths[number] for number in part.tolist()], targets[part])
            for split, part in zip(shares, parts, strict=True)
        }

    def _images_of(self, paths: list[str], targets: Tensor | None, size: tuple[int, int] | None) -> FileImages:
        return FileImages(paths, targets, self.in_channels, size or self.image_size, self.resize, self.on_bad_image)


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides, where one number may stand for both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def stable_key(name: str) -> int:
    """64 bits, as a signed integer, that depend on nothing but `name`."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
