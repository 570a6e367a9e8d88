"""The objects of a batch of images, packed into a few tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Annotations"]


# Not frozen, as Lightning turns the floats of a batch into those of the trainer's precision on a copy of it.
@dataclass
class Annotations:
    """Objects of B images, M in all, one row an object, those of an image together and in the order of the images.

    Args:
        boxes: float32 `(M, 4)`: left, top, right, bottom, pixels of the images in the batch.
        labels: int64 `(M,)`, 1..K; 0 is the background's, as torchvision's detectors have it.
        sample: Which image of the batch, int64 `(M,)`, ascending.
        crowd: Whether a box holds a crowd instead of one object, bool `(M,)`; trained on are the others.
        area: Of the object, not of its box, where that is known, float32 `(M,)`, square pixels of the original image.
        image_id: How the source calls each image, int64 `(B,)`.
        placement: Where an image's pixels went: scale across, scale down, shift right, shift down, float32 `(B, 4)`;
            a point x of the original lies at `x * scale + shift`.
        size: Height and width of each original image, int64 `(B, 2)`.
        masks: uint8 0 and 1 `(M, H, W)`, in the batch's pixels, where the source gives them.
        verified: What is known of each class in each image, whatever its boxes: 1 present, 0 absent, NaN unknown,
            float32 `(B, K)`, for evaluation where the source says it.
    """

    boxes: Tensor
    labels: Tensor
    sample: Tensor
    crowd: Tensor
    area: Tensor
    image_id: Tensor
    placement: Tensor
    size: Tensor
    masks: Tensor | None = None
    verified: Tensor | None = None

    def __len__(self) -> int:
        return len(self.image_id)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The images one by one, as in `targets`."""
        return iter(self.targets())

    def to(self, device: Any, non_blocking: bool = True) -> "Annotations":
        """The same on a device; from page-locked memory without waiting, which Lightning asks for with tensors only."""
        # Copies towards the CPU must be waited for: nothing else keeps them from being read too early.
        non_blocking = non_blocking and torch.device(device).type != "cpu"
        return self._each(lambda it: it.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Annotations":
        """The same in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def keep(self, objects: Tensor) -> "Annotations":
        """Some of the objects, bool `(M,)`, of all images."""
        rows = {name: getattr(self, name)[objects] for name in ("boxes", "labels", "sample", "crowd", "area")}
        return replace(self, **rows, masks=None if self.masks is None else self.masks[objects])

    def targets(self) -> list[dict[str, Tensor]]:
        """One dictionary an image, as torchvision's detectors and torchmetrics take them.

        `boxes`, `labels`, `iscrowd`, `area`, `image_id`, `placement`, `size` and, where there are some, `masks` and
        `verified`.
        """
        counts = torch.bincount(self.sample, minlength=len(self)).tolist()
        rows = {"boxes": self.boxes, "labels": self.labels, "iscrowd": self.crowd.long(), "area": self.area}
        if self.masks is not None:
            rows["masks"] = self.masks
        parts = {name: value.split(counts) for name, value in rows.items()}
        whole = {"image_id": self.image_id, "placement": self.placement, "size": self.size}
        if self.verified is not None:
            whole["verified"] = self.verified
        return [
            {name: value[number] for name, value in (*parts.items(), *whole.items())} for number in range(len(self))
        ]

    def _each(self, change: Any) -> "Annotations":
        return replace(self, **{name: change(it) for name, it in vars(self).items() if it is not None})
