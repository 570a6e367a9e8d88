"""What datamodules share that give a store's answers in the place of labels."""

from abc import abstractmethod
from pathlib import Path
from typing import Literal, TypeGuard

import torch
from torch import Tensor

from ..augmentation.augmentation import Augmentation
from ._answers import AnswerStore
from ._fingerprint import first_difference
from ._loader import Batch
from ._sets import ImageSet
from .datamodule import Split, VisionDataModule

__all__ = ["Answered", "answered", "unpacked"]


class Answered(VisionDataModule):
    """Base of datamodules around another one, whose training images come with answers of a store.

    A subclass says in `command` what makes its stores, in `answered_set` which rows belong to a sample, and in
    `on_after_batch_transfer` what they become. Everything else is that of `data`.

    Args:
        data: The datamodule that the store was made with; batch size, workers and sampler are its own.
        store: Folder of the store.
        seed: Fixes order and draws of every epoch; None is the seed of `data`.

    Raises:
        ValueError: `data` is no datamodule of this package or has a store itself; at set-up of a fit, the store is
            missing, unfinished, damaged or of other data.
    """

    command: str

    def __init__(self, data: VisionDataModule, store: str | Path, seed: int | None) -> None:
        if not isinstance(data, VisionDataModule) or isinstance(data, Answered):
            own, kind = type(self).__name__, type(data).__name__
            raise ValueError(f"{own}: data is {kind}; give a datamodule of this package, not one with a store itself")
        super().__init__(
            data.batch_size,
            data.num_workers,
            data.seed if seed is None else seed,
            data.drop_last,
            data.multiprocessing_context,
            data.augment_by,
            data.sampler,
        )
        self.data, self.store = data, Path(store)
        self.in_channels, self.image_size, self.resize = data.in_channels, data.image_size, data.resize
        self.train_size, self.eval_size = data.train_size, data.eval_size

    @abstractmethod
    def answered_set(self, images: ImageSet, store: AnswerStore) -> ImageSet:
        """The training images with answers in the place of labels."""

    @abstractmethod
    def expected(self, store: AnswerStore) -> dict[str, object]:
        """What the `data` of the store's index must say of these data."""

    @property
    def class_names(self) -> list[str]:
        return self.data.class_names

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return self.data.statistics

    @property
    def augmentation(self) -> Augmentation | None:
        return self.data.augmentation

    @augmentation.setter
    def augmentation(self, given: Augmentation | None) -> None:
        self.data.augmentation = given

    @property
    def bank_set(self) -> ImageSet | None:
        return self.data.bank_set

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def load(self) -> None:
        self.data.setup()
        data = self.data
        self.multilabel, self.predict_paths = data.multilabel, data.predict_paths
        self.train_set, self.val_set = data.train_set, data.val_set
        self.test_set, self.predict_set = data.test_set, data.predict_set

    def setup(self, stage: str | None = None) -> None:
        """Load all splits, once; for a fit also open the store and compare it with the data."""
        super().setup(stage)
        if stage == "fit" and self.train_set is not None and self.train_set.answers == ImageSet.answers:
            self.train_set = self.answered_set(self.train_set, self._opened())

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch if answered(batch) else super().on_before_batch_transfer(batch, dataloader_idx)

    def _images(self, split: Split | Literal["bank"]) -> ImageSet | None:
        if split == "train":
            self.setup("fit")
        return super()._images(split)

    def _opened(self) -> AnswerStore:
        source, own = type(self.data).__name__, type(self).__name__
        if self.multilabel:
            raise ValueError(f"{own}: {source} has several labels an image; soft labels of a store are for one")
        store = AnswerStore.read(self.store, self.command)
        if not store.complete:
            raise ValueError(
                f"the store in {self.store} is unfinished, {store.index['done']} of {store.rows} entries; run the "
                f"`lightning_vision {self.command}` that began it again, it goes on"
            )
        if other := first_difference(store.index["data"], self.expected(store)):
            seed = f" (its data had seed {store.index['seed']})" if "seed" in store.index else ""
            raise ValueError(
                f"the store in {self.store} was made with another {other} than {source} gives here{seed}; give the "
                "data as they were then, or make a store of these"
            )
        return store


def answered(batch: Batch) -> TypeGuard[tuple[Tensor, ...]]:
    """Whether a batch holds answers in the place of labels."""
    return isinstance(batch, tuple | list) and batch[1].ndim > 2


def unpacked(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Classes int64 and values float32, `(B, ..., K)`, of what `AnswerStore.packed` gives."""
    classes, bits = answers.unbind(1)
    return classes.long(), bits.view(torch.float32)
