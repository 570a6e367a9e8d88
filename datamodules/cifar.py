"""CIFAR-10 and CIFAR-100 in memory, from the files of their authors."""

import codecs
import pickle
from abc import abstractmethod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .augmentation.policies import Augment
from .common._labels import check_labels
from .common._loader import Sampler
from .common._sets import ArrayImages
from .common._split import stratified_split
from .common.datamodule import VisionDataModule

__all__ = ["CIFAR10", "CIFAR100"]

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class _CIFAR(VisionDataModule):
    """What both share; a subclass says which files there are and what their labels are called."""

    in_channels = 3
    image_size = (32, 32)
    folder: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    labels: str

    def __init__(
        self,
        root: str | Path = "data",
        val_fraction: float = 0.1,
        augment: Augment = "light",
        download: bool = False,
        batch_size: int = 128,
        num_workers: int = 0,
        sampler: Sampler = "all",
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        loading = (batch_size, num_workers, seed, drop_last, multiprocessing_context)
        super().__init__(*loading, augment, sampler, labels_per_class)
        if not 0 <= val_fraction < 1:
            raise ValueError(f"val_fraction {val_fraction} must be at least 0 and below 1")
        self.root, self.val_fraction, self.download, self.split_seed = root, val_fraction, download, split_seed

    @abstractmethod
    def fetch_files(self) -> None:
        """Download the files and verify them."""

    def prepare_data(self) -> None:
        if self.download:
            self.fetch_files()

    def load(self) -> None:
        images, targets = self._read(self.train_files)
        test = ArrayImages(*self._read(self.test_files))
        train, val = stratified_split(targets, (1 - self.val_fraction, self.val_fraction), self.split_seed)
        self.train_set = ArrayImages(images[train], targets[train])
        self.val_set = ArrayImages(images[val], targets[val]) if len(val) else None
        self.test_set = self.predict_set = test

    def _read(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        batches = [(name, self._unpickle(name)) for name in names]
        try:
            pixels = [
                torch.from_numpy(np.array(batch["data"], dtype=np.uint8)).view(-1, 3, 32, 32) for _, batch in batches
            ]
            targets = [torch.tensor(batch[self.labels], dtype=torch.int64) for _, batch in batches]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{Path(self.root) / self.folder} does not hold {type(self).__name__}'s files") from error
        for (name, _), part in zip(batches, targets, strict=True):
            check_labels(part, self.num_classes, source=f"{name}: ")
        return torch.cat(pixels), torch.cat(targets)

    def _unpickle(self, name: str) -> dict[str, Any]:
        path = Path(self.root) / self.folder / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{type(self).__name__} needs {path}, which is not there; pass download=True or the right root"
            )
        with open(path, "rb") as file:
            try:
                return _ArraysOnly(file, encoding="latin1").load()
            except Exception as error:  # a damaged pickle raises nearly anything
                raise ValueError(f"{path} is damaged or is not a file of {type(self).__name__}: {error}") from error


class CIFAR10(_CIFAR):
    """CIFAR-10, 60,000 colour images of 32x32 pixels in ten classes, in memory.

    50,000 train, of which a stratified part validates, and 10,000 test. Files lie as published, in
    `root/cifar-10-batches-py`. Their pickles are read without running code.

    Args:
        root: Folder that holds `cifar-10-batches-py`.
        val_fraction: Share of the training images that validates; 0 trains on all.
        augment: What training images go through on the device, drawn anew each epoch: the name of a policy, a policy's
            YAML file, an `Augmentation`, or a list of these; "light" pads by 4, crops and mirrors half of the images,
            "none" is neutral.
        download: Fetch the files through torchvision, which verifies them, if they are not there.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that fetch images; 0 is fastest for images in memory.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes which images validate.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, 3, 32, 32)`.

    Raises:
        FileNotFoundError: at set-up, a file is missing.
        ValueError: at set-up, a file is damaged, is another one or holds a label outside 0..9.

    Reference:
        Krizhevsky 2009, Learning multiple layers of features from tiny images
    """

    folder = "cifar-10-batches-py"
    train_files = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_files = ("test_batch",)
    labels = "labels"

    @property
    def class_names(self) -> list[str]:
        return list(CLASSES)

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]

    def fetch_files(self) -> None:
        from torchvision import datasets  # only a download needs it

        datasets.CIFAR10(str(self.root), download=True)


class CIFAR100(_CIFAR):
    """CIFAR-100, 60,000 colour images of 32x32 pixels in a hundred classes, in memory.

    As `CIFAR10`, from `root/cifar-100-python`, with the fine labels.

    Args:
        root: Folder that holds `cifar-100-python`.
        val_fraction: Share of the training images that validates; 0 trains on all.
        augment: What training images go through on the device, drawn anew each epoch: the name of a policy, a policy's
            YAML file, an `Augmentation`, or a list of these; "light" pads by 4, crops and mirrors half of the images,
            "none" is neutral.
        download: Fetch the files through torchvision, which verifies them, if they are not there.
        batch_size: Samples in a batch of one process.
        num_workers: Processes that fetch images; 0 is fastest for images in memory.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes which images validate.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, 3, 32, 32)`.

    Raises:
        FileNotFoundError: at set-up or when the class names are asked for, a file is missing.
        ValueError: at set-up, a file is damaged, is another one or holds a label outside 0..99.

    Reference:
        Krizhevsky 2009, Learning multiple layers of features from tiny images
    """

    folder = "cifar-100-python"
    train_files = ("train",)
    test_files = ("test",)
    labels = "fine_labels"

    @property
    def num_classes(self) -> int:
        return 100

    @property
    def class_names(self) -> list[str]:
        return list(self._unpickle("meta")["fine_label_names"])

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]

    def fetch_files(self) -> None:
        from torchvision import datasets  # only a download needs it

        datasets.CIFAR100(str(self.root), download=True)


_ARRAY_PARTS = {
    "_reconstruct": np.empty(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": codecs.encode,
}


class _ArraysOnly(pickle.Unpickler):
    """Rebuilds plain data and arrays; whatever else a pickle names is refused, not called."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in ("numpy", "_codecs") and name in _ARRAY_PARTS:
            return _ARRAY_PARTS[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
