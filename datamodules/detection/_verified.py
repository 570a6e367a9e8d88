"""What people verified of whole images, packed, and image files that come with it."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lightning_vision.images import Fit, Resize

from ..common._sets import Fetched, FileImages, OnBadImage
from ._boxed_files import BoxedFiles
from ._objects import Objects, rows_between
from .annotations import Annotations

__all__ = ["FractionFiles", "Verified", "VerifiedFiles", "pack_verified"]


@dataclass(frozen=True)
class Verified:
    """Of N images V answers whether a class is there, those of an image together and in the order of the images.

    Args:
        starts: Where the answers of each image begin and, last, where all end, int64 `(N + 1,)`.
        label: 1..K, int16 `(V,)`, of an image each once.
        present: Whether the class is there, bool `(V,)`.
        num_classes: K.
    """

    starts: Tensor
    label: Tensor
    present: Tensor
    num_classes: int

    def dense(self, images: Tensor) -> Tensor:
        """1 present, 0 absent, NaN unknown, float32 `(B, K)`, of the images at these positions, int64 `(B,)`."""
        rows, sample = rows_between(self.starts, images)
        answers = torch.full((len(images), self.num_classes), torch.nan)
        answers[sample, self.label[rows].long() - 1] = self.present[rows].float()
        return answers

    def select(self, images: Tensor) -> "Verified":
        """Those of some images, positions int64 `(n,)`."""
        rows, sample = rows_between(self.starts, images)
        counts = torch.bincount(sample, minlength=len(images))
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return Verified(starts, self.label[rows], self.present[rows], self.num_classes)

    def shown(self) -> Tensor:
        """Which images show which classes: rows of image and class, counted from 0, int64 `(P, 2)`."""
        owner = torch.repeat_interleave(torch.arange(len(self.starts) - 1), self.starts.diff())
        return torch.stack([owner[self.present], self.label[self.present].long() - 1], 1)


def pack_verified(images: int, num_classes: int, image: np.ndarray, label: np.ndarray, present: np.ndarray) -> Verified:
    """`Verified` out of answers in any order; of two that differ, present is right.

    Args:
        images: N.
        num_classes: K.
        image: Position of the image, int `(V,)`.
        label: 1..K, int `(V,)`.
        present: Whether the class is there, `(V,)`.
    """
    key = (image.astype(np.int64) * (num_classes + 1) + label) * 2 + (present == 0)
    key = np.sort(key)
    once = np.append(True, key[1:] // 2 != key[:-1] // 2) if len(key) else np.zeros(0, bool)
    key = key[once]
    owner, answers = key // 2 // (num_classes + 1), key // 2 % (num_classes + 1)
    starts = np.append(0, np.bincount(owner, minlength=images).cumsum())
    return Verified(
        torch.from_numpy(starts),
        torch.from_numpy(answers.astype(np.int16)),
        torch.from_numpy(key % 2 == 0),
        num_classes,
    )


class FractionFiles(BoxedFiles):
    """Images whose boxes are fractions of their sides, which only the decoded file tells.

    Args:
        objects: As of `BoxedFiles`, with boxes and areas as fractions of the image.
        channels: 1 or 3.
        image_size: Height and width, pixels.
        fit: `letterbox` or `squash`.
        on_bad_image: `error` or `skip`.
        verified: What is known of the images' classes.
    """

    def __init__(
        self,
        objects: Objects,
        channels: int,
        image_size: tuple[int, int],
        fit: Fit,
        on_bad_image: OnBadImage,
        verified: Verified | None,
    ) -> None:
        super().__init__(objects, channels, image_size, fit, on_bad_image)
        self.verified = verified
        pairs = torch.stack([objects.owner, objects.labels - 1], 1)
        self.shown = pairs[~objects.crowd].unique(dim=0)

    def _annotations(self, index: Tensor, size: Tensor, placement: Tensor, masks: bool) -> Annotations:
        numbers = index % len(self)
        rows, sample = self.objects.rows(numbers)
        sides, where = size[sample].flip(1).float(), placement[sample]
        boxes = (
            self.objects.boxes[rows].view(-1, 2, 2) * sides[:, None] * where[:, None, :2] + where[:, None, 2:]
        ).flatten(1)
        return replace(
            super()._annotations(index, size, placement, masks),
            boxes=boxes,
            area=self.objects.area[rows] * sides.prod(1),
            verified=None if self.verified is None else self.verified.dense(numbers),
        )


class VerifiedFiles(FileImages):
    """Images with what is known of their classes: targets float32 `(B, K)` of 1 and 0, NaN where nobody knows.

    Args:
        paths: One file a sample.
        verified: What is known of them.
        channels: 1 or 3.
        image_size: Height and width, pixels.
        resize: `crop` or `squash`.
        on_bad_image: `error` or `skip`.
    """

    shown: Tensor

    def __init__(
        self,
        paths: list[str],
        verified: Verified,
        channels: int,
        image_size: tuple[int, int],
        resize: Resize,
        on_bad_image: OnBadImage,
    ) -> None:
        super().__init__(paths, None, channels, image_size, resize, on_bad_image)
        self.verified, self.shown = verified, verified.shown()

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        found = super().fetch(index, epoch)
        return replace(found, target=self.verified.dense(found.index % len(self)))
