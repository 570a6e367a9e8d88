"""Handwritten digits scattered over photographs: data for detection that every installation has."""

from typing import Literal

import torch
from torch import Tensor

from .common._file_source import IMAGENET
from .detection._scenes import SceneImages
from .detection.datamodule import BoxAugment, DetectionDataModule
from .digits import read_digits, split_digits

__all__ = ["DigitScenes"]

# Columns of the photographs, which are 640 wide, that train, validate and test.
STRIPS = ((0, 384), (384, 512), (512, 640))


class DigitScenes(DetectionDataModule):
    """scikit-learn's digits at random sizes and places on crops of its two photographs, each with a tight box.

    A scene holds 1 to 6 digits in colours that stand out. A training scene is a function of (seed, epoch, sample), so
    none comes twice; validation and test scenes are fixed. The digits are split as in `Digits`, and each photograph is
    cut into three strips of which each belongs to one split, so no two splits share a digit or a pixel of background.

    A pixel belongs to a digit where ink covers more than half of it; the box is the extent of these pixels, `area` is
    their number and `masks` are they. `image_id` is the scene's position in its split. Digits have labels 1 to 10, as
    0 is the background's: label k is digit k - 1.

    Args:
        train_images: Scenes in an epoch of training; ten epochs of the default are 30,000.
        val_images: Scenes for validation.
        test_images: Scenes for testing.
        image_size: Height and width of a scene, pixels.
        objects: Fewest and most digits; where there is no free place for one in ten tries, a scene has fewer.
        sizes: Smallest and largest side of the square in which a digit is written, fractions of `image_size`; drawn so
            that halving and doubling are equally likely. At least 8 pixels.
        overlap: Largest share of the smaller of two boxes that may lie in the other, fraction; 0 keeps them apart.
        masks: Give the digits' masks, too, for networks that draw them.
        augment: What training scenes go through on the device, as in `DetectionDataModule`; "none" is neutral.
        batch_size: Scenes in a batch of one process.
        num_workers: Processes that draw scenes.
        seed: Fixes the scenes and their augmentation in every epoch.
        split_seed: Fixes which digits train, validate and test.
        drop_last: Leave out of an epoch of training what does not fill a batch.
        multiprocessing_context: How workers start; None is the system's default.

    Shape:
        uint8 `(B, 3, image_size, image_size)`, normalised on the device by ImageNet's mean and standard deviation.

    Raises:
        ValueError: a number of scenes, of digits or a size is out of its range.

    Example:
        >>> scenes = DigitScenes(batch_size=4)
        >>> image, annotations, index = next(iter(scenes.val_dataloader()))
        >>> image.shape, [len(target["boxes"]) for target in annotations]
        (torch.Size([4, 3, 128, 128]), [1, 1, 1, 1])
    """

    in_channels = 3

    def __init__(
        self,
        train_images: int = 3000,
        val_images: int = 256,
        test_images: int = 512,
        image_size: int = 128,
        objects: tuple[int, int] = (1, 6),
        sizes: tuple[float, float] = (0.11, 0.44),
        overlap: float = 0.0,
        masks: bool = False,
        augment: BoxAugment = "none",
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        split_seed: int = 0,
        drop_last: bool = False,
        multiprocessing_context: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, drop_last, multiprocessing_context, augment)
        counts = {"train_images": train_images, "val_images": val_images, "test_images": test_images}
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"{name} is {count}; give at least 1 scene")
        if not 1 <= objects[0] <= objects[1]:
            raise ValueError(
                f"objects is {objects[0]} to {objects[1]}; give the fewest digits, at least 1, then the most"
            )
        if image_size < 8:
            raise ValueError(f"image_size is {image_size}; give at least 8 pixels")
        if not 0 < sizes[0] <= sizes[1] <= 1:
            raise ValueError(
                f"sizes is {sizes[0]} to {sizes[1]}; give fractions of image_size, at most 1, the smaller first"
            )
        self.sizes = round(sizes[0] * image_size), round(sizes[1] * image_size)
        if self.sizes[0] < 8:
            raise ValueError(
                f"sizes {sizes[0]} to {sizes[1]} of image_size {image_size} are {self.sizes[0]} to {self.sizes[1]} "
                "pixels; give a smallest of at least 8 pixels, or larger scenes"
            )
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap is {overlap}; give a fraction of at least 0 and below 1")
        self.counts, self.objects, self.overlap, self.masks = tuple(counts.values()), objects, overlap, masks
        self.image_size, self.split_seed = (image_size, image_size), split_seed

    @property
    def class_names(self) -> list[str]:
        return list("0123456789")

    @property
    def category_ids(self) -> list[int]:
        return list(range(1, 11))

    @property
    def statistics(self) -> tuple[list[float], list[float]]:
        return IMAGENET[3]

    def load(self) -> None:
        digits, targets = read_digits()
        photos = _photos()
        parts = zip(split_digits(targets, self.split_seed), self.counts, STRIPS, strict=True)
        self.train_set, self.val_set, self.test_set = (
            SceneImages(
                count,
                digits[part],
                targets[part] + 1,
                [photo[:, first:last].contiguous().permute(2, 0, 1) for photo in photos],
                side=self.image_size[0],
                objects=self.objects,
                sizes=self.sizes,
                overlap=self.overlap,
                masks=self.masks,
                # The split is a key too, so that a scene's number alone does not repeat its draws in another split.
                keys=(self.seed, number),
                fixed=number > 0,
            )
            for number, (part, count, (first, last)) in enumerate(parts)
        )
        self.predict_set = self.test_set


def _photos() -> list[Tensor]:
    """scikit-learn's two photographs, uint8 `(427, 640, 3)` each."""
    from sklearn.datasets import load_sample_images

    return [torch.from_numpy(photo.copy()) for photo in load_sample_images().images]
