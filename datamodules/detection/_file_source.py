"""What sources of image files with boxes share: sizes, normalisation, images to predict, who hears of bad ones."""

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_vision.images import EXTENSIONS, Fit, list_images

from ..common._file_source import IMAGENET, height_and_width
from ..common._sets import OnBadImage
from ._boxed_files import BoxedFiles
from ._check_boxes import check_boxes
from ._findings import Findings, OnBadAnnotation
from ._objects import Objects, pack_objects
from .datamodule import DetectionDataModule

__all__ = ["BoxedFileSource", "BoxesFound"]

BoxesFound = tuple[dict[int, str], dict[str, Objects]]


class BoxedFileSource(DetectionDataModule):
    """Image files of any size, mode and format with boxes; a subclass says in `find` which there are.

    The arguments are those of `CocoDetection`, and in `loading` those of the base.
    """

    call = "annotation {source}"
    """How messages call an object; see `check_boxes`."""

    def __init__(
        self,
        image_size: int | tuple[int, int],
        channels: int,
        resize: Fit,
        min_size: float,
        on_bad_annotation: OnBadAnnotation,
        on_bad_image: OnBadImage,
        predict_root: str | Path | None,
        mean: list[float] | None,
        std: list[float] | None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        if channels not in IMAGENET:
            raise ValueError(f"channels is {channels}; give 1 or 3")
        if resize not in ("letterbox", "squash"):
            raise ValueError(f"resize is {resize!r}; give letterbox or squash")
        if on_bad_annotation not in ("error", "skip") or on_bad_image not in ("error", "skip"):
            raise ValueError(
                f"on_bad_annotation is {on_bad_annotation!r} and on_bad_image {on_bad_image!r}; give error or skip"
            )
        if not min_size >= 0:
            raise ValueError(f"min_size is {min_size}; give a side in pixels, 0 to train on every box with an area")
        self.image_size = height_and_width(image_size)
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {image_size}; give height and width in pixels")
        self.in_channels, self.resize, self.min_size = channels, resize, min_size
        self.on_bad_annotation, self.on_bad_image = on_bad_annotation, on_bad_image
        self.predict_root = predict_root
        self._statistics = mean or IMAGENET[channels][0], std or IMAGENET[channels][1]

    @abstractmethod
    def find(self) -> BoxesFound:
        """Names of the classes by what the source calls them, label 1 first, and for each split that there is (also
        `predict`) its images and objects, checked."""

    @cached_property
    def found(self) -> BoxesFound:
        """`find`, once."""
        return self.find()

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return self._statistics

    @property
    def class_names(self) -> list[str]:
        return [*self.found[0].values()]

    @property
    def category_ids(self) -> list[int]:
        return [*self.found[0]]

    def load(self) -> None:
        sets = {split: self._images_of(objects) for split, objects in self.found[1].items()}
        self.train_set, self.val_set = sets.get("train"), sets.get("val")
        self.test_set = sets.get("test", self.val_set)
        predicted = sets.get("predict", self.test_set)
        if self.predict_root is not None:
            predicted = self._images_of(unlabelled(self.predict_root))
        self.predict_set = predicted
        self.predict_paths = None if predicted is None else predicted.paths

    def check(self, objects: Objects, findings: Findings, training: bool) -> Objects:
        """What can be used of a split's objects."""
        return check_boxes(objects, findings, self.call, training, self.min_size)

    def _images_of(self, objects: Objects) -> BoxedFiles:
        return BoxedFiles(objects, self.in_channels, self.image_size, self.resize, self.on_bad_image)


def unlabelled(root: str | Path) -> Objects:
    """The images below a folder, numbered from 1, without objects.

    Raises:
        ValueError: there is none.
    """
    paths = list_images(root)
    if not paths:
        raise ValueError(f"the folder {root} holds no images; give some, {' '.join(EXTENSIONS)}")
    none = torch.zeros(0, dtype=torch.int64)
    sizes = [(0, 0)] * len(paths)
    return pack_objects(paths, range(1, len(paths) + 1), sizes, none, torch.zeros(0, 4), none, none.bool())
