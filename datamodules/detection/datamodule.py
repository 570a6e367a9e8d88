"""The base of all sources of images with boxes."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_vision.images import Fit

from ..common._loader import Batch
from ..common._sets import Fetched
from ..common._uniforms import uniforms
from ..common.datamodule import VisionDataModule
from ._sets import BoxedImages
from ._sheet import draw_box_sheet
from .annotations import Annotations
from .box_augmentation import BoxAugmentation
from .policies import BoxAugment, box_augmentation_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DetectionDataModule"]


class DetectionDataModule(VisionDataModule):
    """Base of sources of images with boxes: `VisionDataModule` whose targets are `Annotations`.

    Loaders give `(uint8 image (B, C, H, W), Annotations, index)`. On the device, after augmentation, a batch is what
    torchvision's detectors take: `(images, targets)`, float32 `(B, C, H, W)` normalised and a list of B dictionaries
    (`Annotations.targets`); for prediction `{"image", "index", "target"}`, of images without known objects with empty
    boxes. `preprocessing` also says `category_ids`, what the source calls the classes 1..K. A subclass sets the sizes
    and fills the sets, `BoxedImages`, in `load`.

    Args:
        batch_size: Images in a batch of one process.
        num_workers: Processes that fetch images.
        seed: Fixes the order and the augmentation of every epoch.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        augment: What training images and their boxes go through on the device: the name of a policy, a
            `BoxAugmentation`, an `Augmentation` that moves no pixels, or a list of these; "none" is neutral.

    Raises:
        ValueError: `batch_size` or `num_workers` is not a number of samples or processes; `augment` is none of those;
            during a run, a label is outside 1..K.
    """

    resize: Fit = "letterbox"

    def __init__(
        self,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        augment: BoxAugment = "none",
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last, multiprocessing_context)
        box_augmentation_for(augment, (32, 32))  # refuses what is none; the size may not be known yet
        self.augment_boxes_by = augment

    @property
    @abstractmethod
    def category_ids(self) -> list[int]:
        """What the source calls the classes, in the order of `class_names`; label k is `category_ids[k - 1]`."""

    @cached_property
    def box_augmentation(self) -> BoxAugmentation | None:
        """What training images and their boxes go through."""
        return box_augmentation_for(self.augment_boxes_by, self.image_size)

    @property
    def preprocessing(self) -> dict[str, Any]:
        return {**super().preprocessing, "category_ids": self.category_ids}

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Objects of each class in each split, crowds left out; where training images are drawn, of the first epoch."""
        self.setup()
        counts = {}
        for split, images in (("train", self.train_set), ("val", self.val_set), ("test", self.test_set)):
            if isinstance(images, BoxedImages):
                found = images.annotations(torch.arange(len(images)))
                numbers = found.labels[~found.crowd].bincount(minlength=self.num_classes + 1)[1:]
                counts[split] = dict(zip(self.class_names, numbers.tolist(), strict=True))
        return counts

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check the labels while they are on the CPU, where it costs no wait.

        Raises:
            ValueError: a label is outside 1..K.
        """
        annotations: Annotations = batch["target"] if isinstance(batch, dict) else batch[1]
        labels = annotations.labels
        # Without objects there may be no classes either, as for prediction alone.
        if len(labels) and not 1 <= labels.min() <= labels.max() <= self.num_classes:
            wrong = int(((labels < 1) | (labels > self.num_classes)).nonzero()[0])
            image = int(annotations.image_id[annotations.sample[wrong]])
            raise ValueError(
                f"label {int(labels[wrong])} of an object in image {image} is outside 1..{self.num_classes}; there are "
                f"{self.num_classes} classes, and 0 is the background's"
            )
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Any:
        """Augment (in training) and normalise the images, and give each its objects as a dictionary."""
        if isinstance(batch, dict):
            return {**batch, "image": self.normalise(batch["image"]), "target": batch["target"].targets()}
        image, annotations, index = batch
        if self.trainer is not None and self.trainer.training:
            # Asked of the loader that trains: others may exist, and `current_epoch` lags after some resumptions.
            epoch = getattr(self.trainer.train_dataloader, "epoch", self.trainer.current_epoch)
            image, annotations = self.augment_boxes(image, annotations, index, epoch)
        return self.normalise(image), annotations.targets()

    def augment_boxes(
        self, image: Tensor, annotations: Annotations, index: Tensor, epoch: int
    ) -> tuple[Tensor, Annotations]:
        """Change each image and its boxes as (seed, epoch, sample) says; training batches go through the same.

        Args:
            image: uint8 `(B, C, H, W)`; left alone.
            annotations: Their objects; left alone.
            index: Positions of the samples in the training set, int64 `(B,)`.
            epoch: Epoch of training.
        """
        if self.box_augmentation is None:
            return image, annotations
        uniform = uniforms(index, self.box_augmentation.draws, self.seed, epoch)
        return self.box_augmentation.apply(image, annotations, uniform)

    def _sheet(
        self,
        batch: Fetched,
        titles: Sequence[str] | None,
        path: str | Path | None,
        epoch: int | None,
        columns: int | None,
    ) -> "Figure":
        """What `plot` draws of the images that it chose: boxes with their classes, crowds dashed."""
        assert isinstance(batch.target, Annotations)
        states = [(batch.image, batch.target)]
        if epoch is not None and self.box_augmentation is not None:
            states.append(self.augment_boxes(batch.image, batch.target, batch.index, epoch))
        if titles is None:
            titles = [str(number) for number in batch.target.image_id.tolist()]
        return draw_box_sheet(states, self.class_names, titles, path, below=f"in epoch {epoch}", columns=columns)
