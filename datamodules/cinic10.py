"""CINIC-10: CIFAR-10's classes with images of CIFAR-10 and of ImageNet."""

import re
from pathlib import Path
from typing import Literal

from .augmentation.policies import Augment
from .cifar import CLASSES
from .common._loader import Sampler
from .common._sets import FileImages, OnBadImage
from .common.datamodule import VisionDataModule
from .image_folder import class_files, labelled

__all__ = ["CINIC10"]

ORIGINS = {"all": "", "cifar10": r"cifar10-", "imagenet": r"n\d+_"}


class CINIC10(VisionDataModule):
    """CINIC-10, 3 x 90,000 images of 32x32 pixels in ten classes, a fifth from CIFAR-10 and the rest from ImageNet.

    Files lie as published: `root/{train,valid,test}/CLASS/*.png`. The origin of an image is read from its file's name:
    `cifar10-*` or `n<synset>_*`.

    Args:
        root: The unpacked folder.
        merge_train_valid: Train on both, 180,000 images, as the authors' second protocol does; nothing validates then.
        origin: Keep `all` images, or those of `cifar10` or of `imagenet` only, in every split.
        augment: What training images go through on the device, drawn anew each epoch: the name of a policy, a policy's
            YAML file, an `Augmentation`, or a list of these; "light" pads by 4, crops and mirrors half of the images,
            "none" is neutral.
        normalize: By the published mean and standard deviation; False gives pixels in 0..1.
        on_bad_image: `error` stops at a damaged file, `skip` leaves it out and reports it at the epoch's end.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that decode.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `seed`, the same in every epoch; validation
            and test stay whole. None takes all.

    Shape:
        uint8 `(B, 3, 32, 32)`.

    Raises:
        FileNotFoundError: at set-up, a split or a class is missing.
        ValueError: at set-up, a split has no image of this origin; `origin` is none of the three.

    Reference:
        Darlow, Crowley, Antoniou and Storkey 2018, arXiv:1810.03505
    """

    in_channels = 3
    image_size = (32, 32)

    def __init__(
        self,
        root: str | Path = "data/CINIC-10",
        merge_train_valid: bool = False,
        origin: Literal["all", "cifar10", "imagenet"] = "all",
        augment: Augment = "light",
        normalize: bool = True,
        on_bad_image: OnBadImage = "error",
        batch_size: int = 128,
        num_workers: int = 0,
        sampler: Sampler = "all",
        seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        loading = (batch_size, num_workers, seed, drop_last, multiprocessing_context)
        super().__init__(*loading, augment, sampler, labels_per_class)
        if origin not in ORIGINS:
            raise ValueError(f"origin {origin!r} must be one of {', '.join(ORIGINS)}")
        self.root, self.merge_train_valid, self.origin, self.on_bad_image = (
            root,
            merge_train_valid,
            origin,
            on_bad_image,
        )
        self.normalize = normalize

    @property
    def class_names(self) -> list[str]:
        return list(CLASSES)

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        if not self.normalize:
            return [0.0] * 3, [1.0] * 3
        return [0.47889522, 0.47227842, 0.43047404], [0.24205776, 0.23828046, 0.25874835]

    def load(self) -> None:
        train, valid, test = (self._files(split) for split in ("train", "valid", "test"))
        if self.merge_train_valid:
            train = {name: train[name] + valid[name] for name in CLASSES}
        else:
            self.val_set = self._images_of(valid)
        self.train_set = self._images_of(train)
        self.test_set = self.predict_set = self._images_of(test)
        self.predict_paths = self.test_set.paths

    def _files(self, split: str) -> dict[str, list[str]]:
        folder = Path(self.root) / split
        if missing := [path for path in (folder / name for name in CLASSES) if not path.is_dir()]:
            raise FileNotFoundError(
                f"there is no folder {missing[0]}; unpack CINIC-10.tar.gz (doi:10.7488/ds/2448) into {self.root}"
            )
        found = class_files(folder)
        kept = {
            name: [path for path in found[name] if re.match(ORIGINS[self.origin], Path(path).name)] for name in CLASSES
        }
        if not any(kept.values()):
            raise ValueError(f"{folder} holds no images of origin {self.origin!r}")
        return kept

    def _images_of(self, classes: dict[str, list[str]]) -> FileImages:
        paths, targets = labelled(classes, CLASSES)
        return FileImages(paths, targets, 3, self.image_size, on_bad_image=self.on_bad_image)
