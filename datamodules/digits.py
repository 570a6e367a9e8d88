"""scikit-learn's handwritten digits, real data that every installation has."""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from .augmentation.policies import Augment
from .augmentation.shift_crop import ShiftCrop
from .common._loader import Sampler
from .common._sets import ArrayImages
from .common._split import stratified_split
from .common.datamodule import VisionDataModule

__all__ = ["Digits"]


def read_digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits, uint8 `(1797, 1, 8, 8)` with 0..16 scaled to 0..255, and their classes, int64 `(1797,)`."""
    from sklearn.datasets import load_digits  # imports scipy, which costs as much as torch

    pixels, targets = load_digits(return_X_y=True)
    images = (torch.from_numpy(pixels).view(-1, 1, 8, 8) * 255 / 16).round().to(torch.uint8)
    return images, torch.from_numpy(targets).long()


def split_digits(targets: Tensor, seed: int) -> list[Tensor]:
    """Positions of the digits that train, validate and test, int64, ascending: 1,258, 180 and 359 with any seed."""
    return stratified_split(targets, (0.7, 0.1, 0.2), seed)


class Digits(VisionDataModule):
    """1,797 handwritten digits of 8x8 pixels that scikit-learn ships, in a fixed stratified split.

    1,258 train, 180 validate and 359 test. Pixels 0..16 are scaled to 0..255.

    Args:
        batch_size: Samples in a batch of one process.
        num_workers: Processes that fetch images; 0 is fastest for images in memory.
        sampler: `all` visits every training image once an epoch, `balanced` as many of every class.
        seed: Fixes the order and the augmentation of every epoch.
        split_seed: Fixes which digits train, validate and test.
        shift: Move training images by up to so many pixels in both directions; 0 is neutral, 1 a gentle augmentation.
        augment: What comes after that, as in `VisionDataModule`; "none" is neutral.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.
        labels_per_class: Train on so many images of every class, chosen by `split_seed`, the same in every epoch;
            validation and test stay whole. None takes all.

    Shape:
        uint8 `(B, 1, 8, 8)`, normalised on the device by mean and standard deviation of the training images.

    Example:
        >>> digits = Digits(batch_size=100)
        >>> image, target, index = next(iter(digits.test_dataloader()))
        >>> image.shape, image.dtype, target.shape
        (torch.Size([100, 1, 8, 8]), torch.uint8, torch.Size([100]))

    Reference:
        Alpaydin and Kaynak 1998, doi:10.24432/C50P49
    """

    in_channels = 1
    image_size = (8, 8)

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        sampler: Sampler = "all",
        seed: int = 0,
        split_seed: int = 0,
        shift: int = 0,
        augment: Augment = "none",
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
        labels_per_class: int | None = None,
    ) -> None:
        if not 0 <= shift <= 7:
            raise ValueError(f"shift {shift} must be 0 to 7 pixels, for the digits are 8 wide")
        stages = [*([ShiftCrop(shift)] if shift else []), *(augment if isinstance(augment, list) else [augment])]
        super().__init__(
            batch_size, num_workers, seed, drop_last, multiprocessing_context, stages, sampler, labels_per_class
        )
        self.split_seed = split_seed

    @property
    def class_names(self) -> list[str]:
        return list("0123456789")

    @cached_property
    def statistics(self) -> tuple[list[float], list[float]]:
        self.setup()
        assert isinstance(self.all_train_images, ArrayImages)
        pixels = self.all_train_images.images.double() / 255
        return [pixels.mean().item()], [pixels.std(correction=0).item()]

    def load(self) -> None:
        images, targets = read_digits()
        self.splits = split_digits(targets, self.split_seed)
        self.train_set, self.val_set, self.test_set = (ArrayImages(images[part], targets[part]) for part in self.splits)
        self.predict_set = self.test_set
