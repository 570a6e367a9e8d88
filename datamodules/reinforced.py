"""Training images that come with what teachers said of them, augmented as the teachers saw them.

Faghri et al. 2023, arXiv:2303.08983. Symbols: N `num_samples`, K `top_k`, C classes.
"""

from pathlib import Path
from typing import final

from torch import Tensor

from .augmentation.augmentation import Augmentation
from .common._answered import Answered, answered, unpacked
from .common._answers import AnswerStore
from .common._draws import Stream, draw_integers
from .common._fingerprint import fingerprint
from .common._loader import Batch
from .common._sets import Fetched, ImageSet, SampleError
from .common.datamodule import VisionDataModule

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
        >>> import torch
        >>> soft_targets(torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]), 4)
        tensor([[0.2500, 0.1250, 0.5000, 0.1250]])
    """
    others = num_classes - classes.shape[1]
    rest = (1 - probabilities.sum(1, keepdim=True)).clamp(min=0) / max(others, 1)
    return rest.repeat(1, num_classes).scatter_(1, classes, probabilities)


@final
class Reinforced(Answered):
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

    command = "reinforce"

    def __init__(self, data: VisionDataModule, store: str | Path, seed: int | None = None) -> None:
        super().__init__(data, store, seed)

    @property
    def augmentation(self) -> Augmentation | None:
        return self.data.augmentation

    @augmentation.setter
    def augmentation(self, given: Augmentation | None) -> None:
        raise ValueError("Reinforced replays the augmentation of its store; change that of `data` and make a new store")

    def answered_set(self, images: ImageSet, store: AnswerStore) -> ImageSet:
        return ReplayedImages(images, store, self.seed)

    def expected(self, store: AnswerStore) -> dict[str, object]:
        return fingerprint(self.data, store.index["seed"])

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Replay the entries' augmentation and normalise; the answers become soft labels."""
        if not answered(batch):
            return super().on_after_batch_transfer(batch, dataloader_idx)
        image, answers, index = batch
        if self.trainer is not None and self.trainer.training:
            image = self.augment(image, index, 0)
        return self.normalise(image), soft_targets(*unpacked(answers), self.num_classes)

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

    def _title(self, label: Tensor) -> str:
        if label.ndim < 2:
            return super()._title(label)
        classes, probabilities = unpacked(label[None])
        return f"{self.class_names[int(classes[0, 0])]} {float(probabilities[0, 0]):.2f}"


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
