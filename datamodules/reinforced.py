"""Training images that come with what teachers said of them, augmented as the teachers saw them.

Faghri et al. 2023, arXiv:2303.08983. Symbols: N `num_samples`, K `top_k`, C classes.
"""

from pathlib import Path
from typing import Literal, TypeGuard, final

import torch
from torch import Tensor

from .augmentation.augmentation import Augmentation
from .common._answers import AnswerStore
from .common._draws import Stream, draw_integers
from .common._fingerprint import fingerprint, first_difference
from .common._loader import Batch
from .common._sets import Fetched, ImageSet, SampleError
from .common.datamodule import Split, VisionDataModule

__all__ = ["Reinforced", "soft_targets"]


def soft_targets(classes: Tensor, probabilities: Tensor, num_classes: int) -> Tensor:
    """Probabilities of all classes out of the largest ones; what they leave of 1 is spread evenly over the others.

    Args:
        classes: Which ones are known, int64 `(B, K)`.
        probabilities: Theirs, `(B, K)`, of sum at most 1.
        num_classes: C, at least K.

    Returns:
        `(B, C)`, of sum 1.

    Example:
        >>> soft_targets(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]), 4)
        tensor([[0.2500, 0.1250, 0.5000, 0.1250]])
    """
    others = num_classes - classes.shape[1]
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp(min=0) / max(others, 1)
    return rest.repeat(1, num_classes).scatter_(1, classes, probabilities)


@final
class Reinforced(VisionDataModule):
    """Any datamodule with soft labels of a store that `lightning_vision reinforce` made, at the cost of plain training.

    Each epoch an entry of every training image is drawn, its augmentation is replayed, bit for bit the image that the
    teachers saw, and the target is what they said: probabilities `(B, C)`, the K stored ones and the rest spread
    evenly. Cross entropy with them is the divergence KL(teacher || student) plus a number that no weight moves, the
    entropy of the teacher. Training accuracy is then agreement with the teacher. Validation, test and prediction are
    those of `data`.

    Args:
        data: The datamodule that the store was made with; batch size, workers and sampler are its own. Its `seed` has
            no part in augmentation, which is replayed.
        store: Folder of the store.
        seed: Fixes order and entries of every epoch; None is the seed of `data`.

    Shape:
        image float32 `(B, C, H, W)` normalised, target float32 `(B, num_classes)`; in evaluation as `data`.

    Raises:
        ValueError: `data` is no datamodule with one label an image; at set-up of a fit, the store is missing,
            unfinished or damaged, or was made with other classes, images, sizes, augmentation or normalisation.

    Example:
        >>> from lightning_vision.datamodules import Digits
        >>> Reinforced(Digits(shift=1), "store").num_classes
        10

    Reference: Faghri et al. 2023, arXiv:2303.08983

    BibTeX:
        @inproceedings{faghri2023reinforce,
          title = {Reinforce Data, Multiply Impact: Improved Model Accuracy and Robustness with Dataset Reinforcement},
          author = {Faghri, Fartash and Pouransari, Hadi and Mehta, Sachin and Farajtabar, Mehrdad and
            Farhadi, Ali and Rastegari, Mohammad and Tuzel, Oncel},
          booktitle = {International Conference on Computer Vision},
          year = {2023},
          eprint = {2303.08983},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        An augmentation is stored as the numbers of its draws, which are a function of (seed, image, entry), not as
        parameters. The remainder is always spread evenly, which is one of two ways in the authors' code. Entries that
        mix two images are left out: the partner would have to be read, too, which is not the cost of plain training.

    See also:
        `Distillation`, which asks the teacher in every step.
    """

    def __init__(self, data: VisionDataModule, store: str | Path, seed: int | None = None) -> None:
        if not isinstance(data, VisionDataModule) or isinstance(data, Reinforced):
            kind = type(data).__name__
            raise ValueError(f"Reinforced: data is {kind}; give a datamodule of this package, not reinforced itself")
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
        raise ValueError("Reinforced replays the augmentation of its store; change that of `data` and make a new store")

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
        if stage == "fit" and self.train_set is not None and not isinstance(self.train_set, ReplayedImages):
            self.train_set = ReplayedImages(self.train_set, self._opened(), self.seed)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return batch if _answered(batch) else super().on_before_batch_transfer(batch, dataloader_idx)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Replay the entries' augmentation and normalise; the answers become soft labels."""
        if not _answered(batch):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        image, answers, index = batch
        if self.trainer is not None and self.trainer.training:
            image = self.augment(image, index, 0)
        return self.normalise(image), soft_targets(*_unpacked(answers), self.num_classes)

    def augment(self, image: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Replay what the teachers saw, on the device.

        Args:
            image: uint8 `(B, C, H, W)`; left alone.
            index: Positions of the entries, int64 `(B,)`: entry n of sample i is at `i + n * samples`.
            epoch: Has no part in it.
        """
        images = self.train_set
        if self.augmentation is None or not isinstance(images, ReplayedImages):
            return image
        store = images.store
        uniform = self._uniforms(index, self.augmentation.draws, store.index["seed"], 0, store.rows)
        return self.augmentation.apply(image, uniform)

    def _images(self, split: Split | Literal["bank"]) -> ImageSet | None:
        if split == "train":
            self.setup("fit")
        return super()._images(split)

    def _title(self, label: Tensor) -> str:
        if label.ndim < 2:
            return super()._title(label)
        classes, probabilities = _unpacked(label[None])
        return f"{self.class_names[int(classes[0, 0])]} {float(probabilities[0, 0]):.2f}"

    def _opened(self) -> AnswerStore:
        if self.multilabel:
            source = type(self.data).__name__
            raise ValueError(f"Reinforced: {source} has several labels an image; soft labels of a store are for one")
        store = AnswerStore.read(self.store)
        if not store.complete:
            raise ValueError(
                f"the store in {self.store} is unfinished, {store.index['done']} of {store.rows} entries; run the "
                "`lightning_vision reinforce` that began it again, it goes on"
            )
        seed = store.index["seed"]
        if other := first_difference(store.index["data"], fingerprint(self.data, seed)):
            raise ValueError(
                f"the store in {self.store} was made with another {other} than {type(self.data).__name__} gives here "
                f"(its data had seed {seed}); give the data as they were then, or make a store of these"
            )
        return store


class ReplayedImages(ImageSet):
    """Images as entries of a store: which entry is a function of (seed, epoch, sample), as all that follows from it.

    Args:
        images: The training set.
        store: Answers to its entries.
        seed: Of the draws of entries.
    """

    def __init__(self, images: ImageSet, store: AnswerStore, seed: int) -> None:
        self.images, self.store, self.seed = images, store, seed
        self.targets, self.answers = images.targets, f"{store.index['checksum']:08x}"

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        entry = draw_integers(self.store.index["num_samples"], index, self.seed, epoch, Stream.ENTRY)
        fetched = self.images.fetch(index % len(self) + entry * len(self))
        try:
            answers = self.store.packed(fetched.index)
        except IndexError as error:
            sample = int(str(error)) % len(self)
            raise SampleError(
                f"training image {sample} could not be decoded when the store in {self.store.folder} was made, now it "
                "can; make the store again"
            ) from error
        return Fetched(fetched.image, answers, fetched.index, fetched.skipped)


def _answered(batch: Batch) -> TypeGuard[tuple[Tensor, ...]]:
    """Whether a batch holds answers in the place of labels."""
    return isinstance(batch, tuple | list) and batch[1].ndim == 3


def _unpacked(answers: Tensor) -> tuple[Tensor, Tensor]:
    """Classes int64 and probabilities float32, both `(B, K)`, of what `AnswerStore.packed` gives."""
    classes, bits = answers.unbind(1)
    return classes.long(), bits.view(torch.float32)
