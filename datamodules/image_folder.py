"""Image files in one folder a class."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_vision.images import EXTENSIONS, Resize, list_images

from .common._sets import FileImages, OnBadImage
from .common._split import stratified_split
from .common.datamodule import VisionDataModule

__all__ = ["ImageFolder"]

NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
IMAGENET = {3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), 1: ([0.449], [0.226])}


class ImageFolder(VisionDataModule):
    """Images of any size, mode and format in class folders, split by folders or by a seeded stratified draw.

    Either `root/train/CLASS/...`, with `val` (or `valid`, `validation`) and `test` beside it, or `root/CLASS/...`. What
    the folders leave open is drawn: validation from the training images, without `train` all three. A draw depends on
    `split_seed` and the files' names alone, so it is the same in every process and stage.

    Args:
        root: The folder; None with `predict_root` alone.
        image_size: Height and width, pixels, or one number for both.
        channels: 3 for colour, 1 for grey; every image is converted.
        resize: `crop` keeps the aspect ratio and cuts the middle out, `squash` does not keep it.
        on_bad_image: At a file that cannot be decoded, `error` stops and names it, `skip` leaves it out of its batch
            and reports count and names at the epoch's end.
        val_fraction: Share drawn for validation where there is no folder for it.
        test_fraction: Share drawn for testing where there is no `train` folder.
        predict_root: Folder of images without labels for prediction, or one file; by default that is the test set.
        flip: Mirror half of the training images left to right, drawn anew each epoch; False is neutral.
        padding: Shift training images by up to so many pixels; 0 is neutral.
        mean: Per channel, of pixels in 0..1; by default ImageNet's, as pretrained networks expect.
        std: Standard deviation, likewise.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that decode.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes what is drawn for validation and testing.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, channels, *image_size)`.

    Raises:
        FileNotFoundError: at set-up, a folder is missing.
        ValueError: at set-up, a folder holds no images, would be left unread or tests a class that is not trained; an
            argument is out of its range.
        BadImageError: at a damaged file, with `on_bad_image="error"`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        image_size: int | tuple[int, int] = 224,
        channels: int = 3,
        resize: Resize = "crop",
        on_bad_image: OnBadImage = "error",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        predict_root: str | Path | None = None,
        flip: bool = True,
        padding: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last, multiprocessing_context)
        if root is None and predict_root is None:
            raise ValueError("ImageFolder needs a root, the folder that holds the class folders, or a predict_root")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
        if channels not in IMAGENET:
            raise ValueError(f"channels must be 1 or 3, not {channels}")
        if resize not in ("crop", "squash") or on_bad_image not in ("error", "skip"):
            raise ValueError(f"resize {resize!r} must be crop or squash, on_bad_image {on_bad_image!r} error or skip")
        self.root, self.predict_root = root, predict_root
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.in_channels, self.resize, self.on_bad_image = channels, resize, on_bad_image
        self.val_fraction, self.test_fraction, self.split_seed = val_fraction, test_fraction, split_seed
        self.flip, self.padding = flip, padding
        self._statistics = mean or IMAGENET[channels][0], std or IMAGENET[channels][1]

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return self._statistics

    @property
    def class_names(self) -> list[str]:
        return self._found[0]

    def load(self) -> None:
        for split, (paths, targets) in self._found[1].items():
            setattr(self, f"{split}_set", self._images_of(paths, targets) if paths else None)
        if self.predict_root is not None:
            self.predict_paths = list_images(self.predict_root)
            if not self.predict_paths:
                raise ValueError(f"the folder {self.predict_root} holds no images ({' '.join(EXTENSIONS)})")
            self.predict_set = self._images_of(self.predict_paths, None)
        elif isinstance(self.test_set, FileImages):
            self.predict_set, self.predict_paths = self.test_set, self.test_set.paths

    def _images_of(self, paths: list[str], targets: Tensor | None) -> FileImages:
        return FileImages(paths, targets, self.in_channels, self.image_size, self.resize, self.on_bad_image)

    @cached_property
    def _found(self) -> tuple[list[str], dict[str, tuple[list[str], Tensor]]]:
        """Class names, and paths and labels of each split."""
        if self.root is None:
            return [], {}
        root = Path(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"there is no folder {root}; root must hold train/CLASS or CLASS folders of images")
        by_folder = any(path.is_dir() for path in (root / "train").glob("[!.]*"))
        folders = split_folders(root) if by_folder else {}
        classes = {split: class_files(path) for split, path in (folders or {"train": root}).items()}
        names = list(classes["train"])
        if not by_folder and len(names) > 1 and {*names} <= {name for given in NAMES.values() for name in given}:
            raise ValueError(
                f"{root} has folders called {' and '.join(names)} but no train folder with class folders in it"
            )
        if empty := [name for name in names if not classes["train"][name]]:
            raise ValueError(f"the class folder {folders.get('train', root) / empty[0]} holds no images")
        for split in classes:
            if unknown := [name for name, files in classes[split].items() if files and name not in names]:
                raise ValueError(
                    f"class {unknown[0]!r} is in {folders[split]} but not in {folders['train']}; "
                    "add images to train on or remove it"
                )
        splits = {split: labelled(found, names) for split, found in classes.items()}
        if "val" not in splits:
            test = 0.0 if by_folder else self.test_fraction
            shares = {"train": 1 - self.val_fraction - test, "val": self.val_fraction, "test": test}
            if by_folder:
                del shares["test"]
            paths, targets = splits["train"]
            keys = torch.tensor([_key(Path(path).relative_to(root)) for path in paths])
            parts = stratified_split(targets, list(shares.values()), self.split_seed, keys)
            splits |= {
                split: ([paths[number] for number in part.tolist()], targets[part])
                for split, part in zip(shares, parts, strict=True)
            }
        return names, splits


def split_folders(root: Path) -> dict[str, Path]:
    """The folder of each split below `root`.

    Raises:
        ValueError: a split has two, or another folder beside them holds images that nothing would read.
    """
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise ValueError(f"{present[0]} and {present[1]} are both folders for {split}; merge them or move one away")
        if present:
            found[split] = present[0]
    known = {*found.values()}
    beside = sorted(path for path in root.iterdir() if path.is_dir() and path.name[0] != "." and path not in known)
    if unread := [path.name for path in beside if list_images(path)]:
        raise ValueError(
            f"{root} has class folders in train, so images in {', '.join(unread)} beside it would not be read; "
            "move them into train or away, or rename train if it is a class"
        )
    return found


def class_files(folder: Path) -> dict[str, list[str]]:
    """Images of each class folder below `folder`, classes and images in an order that no file system changes.

    Raises:
        ValueError: there is no image in any.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {name: list_images(folder / name) for name in classes}
    if not any(found.values()):
        raise ValueError(f"the folder {folder} has no class folders with images, such as {folder / 'cat' / '1.jpg'}")
    return found


def labelled(classes: dict[str, list[str]], names: list[str]) -> tuple[list[str], Tensor]:
    """Paths and, as int64, the positions of their classes in `names`."""
    labels = {name: number for number, name in enumerate(names)}
    pairs = [(path, labels[name]) for name, files in classes.items() for path in files]
    return [path for path, _ in pairs], torch.tensor([label for _, label in pairs])


def _key(path: Path) -> int:
    digest = hashlib.blake2b(path.as_posix().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
