"""The base of all sources of images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from lightning_vision.images import Fit, Resize, rescale, scale_and_shift

from ..augmentation.augmentation import Augmentation
from ..augmentation.chain import Chain
from ..augmentation.policies import Augment, augmentation_for
from ..augmentation.shift_crop import ShiftCrop
from ._labels import check_balanced, check_labels
from ._loader import Batch, Sampler, ShardedLoader
from ._sets import Fetched, ImageSet
from ._sheet import draw_sheet
from ._split import few_labelled
from ._uniforms import EpochUniforms, uniforms

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["VisionDataModule"]

Split = Literal["train", "val", "test", "predict"]


class VisionDataModule(LightningDataModule, ABC):
    """Base of all sources: loaders that shard and resume, augmentation on the device, labelled sheets.

    Loaders give `(uint8 image, target, index)`. On the device it becomes `(float32 image (B, C, H, W) normalised, int64
    target (B,))`, or a float32 target `(B, K)` where several classes may apply; in training augmented by draws that are
    a function of (seed, epoch, sample); for prediction `{"image", "index"}` and, with labels, `"target"`. A subclass
    sets the sizes and fills the sets in `load`.

    Args:
        batch_size: Samples in a batch of one process.
        num_workers: Processes that fetch images; 0 is fastest for images in memory.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        augment: What training images go through on the device: the name of a policy, a policy's YAML file, an
            `Augmentation`, or a list of these; "none" is neutral.
        sampler: What an epoch of training visits: `all` images once, or `balanced`, as many images of every class, for
            which those of small classes come several times, augmented anew; the epoch stays as long.
        labels_per_class: Train on so many images of every class, the same in every epoch, chosen by `split_seed` where
            a source has one and else by `seed`; validation and test stay whole, and so does what statistics are
            measured on. None takes all.

    Raises:
        ValueError: `batch_size` or `num_workers` is not a number of samples or processes; `augment` or `sampler` is
            none of those; `labels_per_class` is no whole number above 0; at set-up, `sampler="balanced"` or
            `labels_per_class` finds no single known class an image, or a class has fewer images than are asked for.
    """

    in_channels: int
    image_size: tuple[int, int]
    resize: Resize | Fit = "crop"
    multilabel: bool = False
    """Whether several classes may apply to an image."""
    train_size: tuple[int, int] | None = None
    """Height and width of training images before augmentation, pixels, where that is not `image_size`."""
    eval_size: tuple[int, int] | None = None
    """Height and width of images for validation, test and prediction, pixels, where that is not `image_size`."""
    predict_paths: list[str] | None = None
    train_set: ImageSet | None = None
    all_train_images: ImageSet | None = None
    """All that could be trained on, of which `labels_per_class` takes a part."""
    val_set: ImageSet | None = None
    test_set: ImageSet | None = None
    predict_set: ImageSet | None = None

    def __init__(
        self,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        augment: Augment = "none",
        sampler: Sampler = "all",
        labels_per_class: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size is {batch_size} and num_workers {num_workers}; give at least 1 and 0")
        self.batch_size, self.num_workers, self.seed, self.drop_last = batch_size, num_workers, seed, drop_last
        self.multiprocessing_context = multiprocessing_context
        augmentation_for(augment, (32, 32))  # refuses what is none; the size may not be known yet
        if sampler not in ("all", "balanced"):
            raise ValueError(f"sampler is {sampler!r}; give all or balanced")
        whole = isinstance(labels_per_class, int) and not isinstance(labels_per_class, bool)
        if labels_per_class is not None and not (whole and labels_per_class > 0):
            raise ValueError(f"labels_per_class is {labels_per_class!r}; give a whole number of at least 1, or None")
        self.augment_by, self.sampler, self.labels_per_class = augment, sampler, labels_per_class
        self._loaders: WeakSet[ShardedLoader] = WeakSet()
        self._scales: dict[tuple[torch.device, bool], tuple[Tensor, Tensor]] = {}
        self._uniforms = EpochUniforms()
        self._loaded = False

    @property
    def bank_set(self) -> ImageSet | None:
        """The training images at the size of evaluation."""
        return self.train_set

    @abstractmethod
    def load(self) -> None:
        """Fill `train_set`, `val_set`, `test_set` and `predict_set`, the same in every process and stage."""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""

    @property
    @abstractmethod
    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel, of pixels in 0..1."""

    @property
    def num_classes(self) -> int:
        """How many classes there are.

        Raises:
            AttributeError: nothing is labelled, as for prediction alone; only the module knows the number then.
        """
        if not (names := self.class_names):
            raise AttributeError(f"{type(self).__name__} has no labels, so no num_classes; give the module its own")
        return len(names)

    @cached_property
    def augmentation(self) -> Augmentation | None:
        """What training images go through; where it does not cut larger ones to `image_size`, a window comes first."""
        size = self.image_size
        augmentation = augmentation_for(self.augment_by, size)
        if self.train_size is None or self.train_size == size:
            return augmentation
        window = ShiftCrop(size=size)
        if augmentation is None:
            return window
        probe = torch.zeros(1, self.in_channels, *self.train_size, dtype=torch.uint8)
        result = augmentation.apply(probe, torch.zeros(1, augmentation.draws))
        return Chain([window, augmentation]) if result.shape == probe.shape else augmentation

    @property
    def mean(self) -> list[float]:
        return self.statistics[0]

    @property
    def std(self) -> list[float]:
        return self.statistics[1]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What a raw image needs to become an input, as plain data; `image_size` is that of evaluation."""
        return {
            "class_names": self.class_names,
            "channels": self.in_channels,
            "image_size": self.eval_size or self.image_size,
            "resize": self.resize,
            "mean": self.mean,
            "std": self.std,
        }

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Images of each class in each split whose labels are known; with several labels an image counts for each."""
        self.setup()
        counts = {}
        for split, images in (("train", self.train_set), ("val", self.val_set), ("test", self.test_set)):
            if images is not None and images.targets is not None:
                found = images.targets
                numbers = found.bincount(minlength=self.num_classes) if found.ndim == 1 else (found > 0).sum(0)
                counts[split] = dict(zip(self.class_names, numbers.tolist(), strict=True))
        return counts

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, whatever the stage; once."""
        if not self._loaded:
            self.load()
            self.all_train_images = self.train_set
            if self.labels_per_class is not None and self.train_set is not None:
                self.train_set = self._few(self.train_set, self.labels_per_class)
            if self.sampler == "balanced" and self.train_set is not None and self.train_set.shown is None:
                check_balanced(self.train_set.targets, self.num_classes, type(self).__name__)
            self._loaded = True

    def train_dataloader(self) -> ShardedLoader:
        # Overfitting a few batches needs the same ones each epoch; Lightning cannot unshuffle a loader of our own.
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader("train", shuffle=not overfit, drop_last=self.drop_last)

    def val_dataloader(self) -> ShardedLoader | list[ShardedLoader]:
        return [] if self._images("val") is None else self._loader("val")

    def bank_dataloader(self) -> ShardedLoader:
        """Each training image once, in one random order that stays, at the size of evaluation; probes compare with it.

        Outside of training its batches are not augmented, as none are.
        """
        return self._loader("bank", shuffle=True)

    def test_dataloader(self) -> ShardedLoader:
        return self._loader("test")

    def predict_dataloader(self) -> ShardedLoader:
        return self._loader("predict", as_dict=True)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check the labels while they are on the CPU, where it costs no wait; in prediction -1 stands for unknown.

        Raises:
            ValueError: a label is outside 0 .. num_classes - 1.
        """
        if isinstance(batch, tuple | list):
            check_labels(batch[1], self.num_classes, batch[2])
        elif "target" in batch:
            target, index = batch["target"], batch["index"]
            known = target != -1 if target.ndim == 1 else torch.ones(len(target), dtype=torch.bool)
            check_labels(target[known], self.num_classes, index[known])
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment (in training) and normalise the images; the index has done its work and goes, but for prediction."""
        if isinstance(batch, dict):
            return {**batch, "image": self.normalise(batch["image"])}
        image, target, index = batch
        if (drawn := self._drawn(index)) is not None:
            augmentation, uniform = drawn
            image = augmentation.apply(image, uniform)
        return self.normalise(image), target

    def augment(self, image: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Change each image as (seed, epoch, sample) says; on the device, training batches go through the same.

        Args:
            image: uint8 `(B, C, H, W)`; left alone.
            index: Positions of the samples in the training set, int64 `(B,)`.
            epoch: Epoch of training.
        """
        if self.augmentation is None:
            return image
        return self.augmentation.apply(image, uniforms(index, self.augmentation.draws, self.seed, epoch))

    def normalise(self, image: Tensor) -> Tensor:
        """Scale to 0..1 (uint8 only), subtract `mean`, divide by `std`: float32, or the precision of the trainer."""
        key = image.device, image.dtype == torch.uint8
        if key not in self._scales:
            self._scales[key] = scale_and_shift(self.mean, self.std, image.device, 255 if key[1] else 1)
        image = rescale(image, *self._scales[key])
        return image if self.trainer is None else self.trainer.precision_plugin.convert_input(image)

    def plot(
        self,
        split: Split = "train",
        count: int = 24,
        path: str | Path | None = None,
        epoch: int | None = None,
        positions: Sequence[int] | None = None,
        titles: Sequence[str] | None = None,
        columns: int | None = None,
    ) -> "Figure":
        """Draw a sheet of images with their class names, as they are or before and after augmentation.

        Args:
            split: Where they come from.
            count: How many, spread evenly over the split.
            path: Image file to write.
            epoch: Below the images, show them as augmented in that epoch; None shows them as they are.
            positions: Draw these samples of the split instead of `count` spread ones.
            titles: Write these above the images instead of the class names, or of the numbers that a source with boxes
                gives its images.
            columns: Images in a row; None makes the sheet about square.

        Raises:
            ValueError: the split has no images, or none are asked for.
        """
        images = self._images(split)
        if images is None:
            raise ValueError(f"{type(self).__name__} has no {split} images to plot; name another split")
        if count < 1:
            raise ValueError(f"count is {count}; give how many images to draw, at least 1")
        if positions is None:
            positions = torch.linspace(0, len(images) - 1, min(count, len(images))).long().tolist()
        return self._sheet(images.fetch(torch.tensor(positions), epoch or 0), titles, path, epoch, columns)

    def __str__(self) -> str:
        # Lightning's asks each loader for batches; messages only need to say which datamodule it is.
        return f"{type(self).__name__}(batch_size={self.batch_size}, seed={self.seed})"

    def teardown(self, stage: str) -> None:
        """Stop the workers."""
        for loader in self._loaders:
            loader.close()

    def on_exception(self, exception: BaseException) -> None:
        self.teardown("")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaders", "_uniforms")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _loaders=WeakSet(), _uniforms=EpochUniforms())

    def _sheet(
        self,
        batch: Fetched,
        titles: Sequence[str] | None,
        path: str | Path | None,
        epoch: int | None,
        columns: int | None,
    ) -> "Figure":
        """What `plot` draws of the images that it chose."""
        image, target = batch.image, batch.target
        rows = [image]
        if epoch is not None and self.augmentation is not None:
            rows.append(self.augment(image, batch.index, epoch))
        if titles is None:
            titles = [self._title(label) for label in target] if isinstance(target, Tensor) else [""] * len(image)
        return draw_sheet([_pixels(row) for row in rows], titles, path, below=f"in epoch {epoch}", columns=columns)

    def _few(self, images: ImageSet, count: int) -> ImageSet:
        """So many images of every class.

        Raises:
            ValueError: images have no single known class, or one has fewer.
        """
        source = type(self).__name__
        if images.targets is None or images.targets.ndim != 1:
            found = "does not tell its labels before it loads images"
            if images.targets is not None:
                found = "has several labels an image"
            raise ValueError(f"labels_per_class chooses images by their one class, but {source} {found}; leave it out")
        check_labels(images.targets, self.num_classes, source="train: ")
        seed = getattr(self, "split_seed", self.seed)
        return images.part(few_labelled(images.targets, count, self.num_classes, seed, source))

    def _drawn(self, index: Tensor) -> tuple[Augmentation, Tensor] | None:
        """What augments the samples of a training batch, and the numbers it is given; None where nothing does."""
        if self.augmentation is None or self.trainer is None or not self.trainer.training:
            return None
        # Asked of the loader that trains: others may exist, and `current_epoch` lags after some resumptions.
        epoch = getattr(self.trainer.train_dataloader, "epoch", self.trainer.current_epoch)
        # A balanced epoch holds copies, whose positions lie beyond the samples.
        samples = 0 if self.train_set is None or self.sampler == "balanced" else len(self.train_set)
        return self.augmentation, self._uniforms(index, self.augmentation.draws, self.seed, epoch, samples)

    def _title(self, label: Tensor) -> str:
        present = [int(label)] if label.ndim == 0 else (label > 0).nonzero()[:, 0].tolist()
        return ", ".join(self.class_names[number] for number in present)

    def _images(self, split: Split | Literal["bank"]) -> ImageSet | None:
        self.setup()
        return getattr(self, f"{split}_set")

    def _loader(
        self, split: Split | Literal["bank"], shuffle: bool = False, drop_last: bool = False, as_dict: bool = False
    ) -> ShardedLoader:
        images = self._images(split)
        if images is None:
            raise ValueError(f"{type(self).__name__} has no {split} images; give it some, or do without")
        trainer = self.trainer
        shard = (trainer and trainer.distributed_sampler_kwargs) or {}
        loader = ShardedLoader(
            images,
            self.batch_size,
            seed=self.seed,
            shuffle=shuffle,
            sampler=self.sampler if split == "train" else "all",
            drop_last=drop_last,
            rank=shard.get("rank", 0),
            world_size=shard.get("num_replicas", 1),
            num_workers=self.num_workers,
            multiprocessing_context=self.multiprocessing_context,
            pin_memory=trainer is not None and trainer.strategy.root_device.type == "cuda",
            as_dict=as_dict,
        )
        self._loaders.add(loader)
        return loader


def _pixels(image: Tensor) -> np.ndarray:
    """`(N, H, W, C)` in 0..1."""
    scaled = image / 255 if image.dtype == torch.uint8 else image
    return scaled.clamp(0, 1).permute(0, 2, 3, 1).numpy()
