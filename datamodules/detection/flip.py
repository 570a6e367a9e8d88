"""Images mirrored left to right with their boxes and masks."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from ..augmentation.shift_crop import crop_windows
from ._placing import fraction
from .annotations import Annotations
from .box_augmentation import BoxAugmentation

__all__ = ["HorizontalFlip", "flip_horizontally"]


def flip_horizontally(images: Tensor, annotations: Annotations, flip: Tensor) -> tuple[Tensor, Annotations]:
    """Mirror some images of a batch left to right, with their boxes and masks; twice gives the batch again.

    Args:
        images: `(B, C, H, W)`; left alone.
        annotations: Their objects; left alone.
        flip: Which, bool `(B,)`.
    """
    width = images.shape[3]
    turned = flip[annotations.sample]
    left, top, right, bottom = annotations.boxes.unbind(1)
    boxes = torch.where(turned[:, None], torch.stack([width - right, top, width - left, bottom], 1), annotations.boxes)
    masks = annotations.masks
    if masks is not None:
        masks = _mirrored(masks[:, None], turned)[:, 0]
    placement = annotations.placement.clone()
    placement[:, 0] = torch.where(flip, -placement[:, 0], placement[:, 0])
    placement[:, 2] = torch.where(flip, width - placement[:, 2], placement[:, 2])
    return _mirrored(images, flip), replace(annotations, boxes=boxes, masks=masks, placement=placement)


@final
class HorizontalFlip(BoxAugmentation):
    """Mirrors some of the images left to right, with their boxes and masks.

    torchvision's `RandomHorizontalFlip`, a draw of its own for each image.

    Args:
        prob: Fraction of the images that are mirrored; 0 leaves all as they are.

    Shape:
        uint8 `(B, C, H, W)` to the same; no object is lost.

    Raises:
        ValueError: `prob` is no fraction; images are not uint8 `(B, 1 or 3, H, W)`.

    Example:
        >>> from lightning_vision.datamodules.detection import pack_boxes
        >>> annotations = pack_boxes([torch.tensor([[0, 0, 1, 1]])], [torch.tensor([1])], size=(1, 4))
        >>> HorizontalFlip(prob=1.0)(torch.zeros(1, 1, 1, 4, dtype=torch.uint8), annotations)[1].boxes.tolist()
        [[3.0, 0.0, 4.0, 1.0]]

    See also:
        `ShiftCrop(flip=True)`, which mirrors images without boxes.
    """

    draws = 1

    def __init__(self, prob: float = 0.5) -> None:
        self.prob = fraction("HorizontalFlip", "prob", prob)

    def apply(self, images: Tensor, annotations: Annotations, uniform: Tensor) -> tuple[Tensor, Annotations]:
        self.check(images, annotations, uniform)
        if self.prob == 0:
            return images, annotations
        return flip_horizontally(images, annotations, uniform[:, 0] < self.prob)


def _mirrored(pixels: Tensor, flip: Tensor) -> Tensor:
    nowhere = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
    return crop_windows(pixels, nowhere, nowhere, flip, (0, 0), (pixels.shape[2], pixels.shape[3]))
