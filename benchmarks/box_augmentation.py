"""Augmentation of images with boxes, a batch at once, beside torchvision's v2 with tv_tensors image by image."""

from functools import partial

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from lightning_vision.datamodules.detection import (
    Annotations,
    BoxMixUp,
    Mosaic,
    ObjectCrop,
    ScaleJitter,
    box_augmentation_for,
    pack_boxes,
)

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

OBJECTS = 8
GREY = 114


def rows(quick: bool) -> list[Row]:
    """Augment a batch of photographs, uint8 (32, 3, 512, 512), with 8 boxes each.

    Args:
        quick: One repetition with 4 images of 96 x 96.
    """
    count, side = (4, 96) if quick else (32, 512)
    images, annotations = _scenes(count, side)
    torch.manual_seed(0)  # both sides draw from the global stream
    flip, distort, clean = v2.RandomHorizontalFlip(), v2.RandomPhotometricDistort(), v2.SanitizeBoundingBoxes()
    pad_or_cut = v2.RandomCrop(side, pad_if_needed=True, fill=GREY)
    jitters = [v2.ScaleJitter((side, side), scale, antialias=True) for scale in ((0.8, 1.25), (0.1, 2.0))]
    whole = v2.Resize((side, side), antialias=True)
    crop = [v2.RandomIoUCrop(), whole]
    theirs: dict[str, list[v2.Transform]] = {
        "light": [flip],
        "standard": [jitters[0], pad_or_cut, flip, distort, clean],
        "strong": [jitters[1], pad_or_cut, flip, distort, clean],
        "ssd": [distort, v2.RandomZoomOut(GREY), *crop, flip, clean],
        "ScaleJitter": [jitters[1], pad_or_cut, clean],
        "ObjectCrop": [*crop, clean],
    }
    classes = {"ScaleJitter": ScaleJitter(), "ObjectCrop": ObjectCrop(), "Mosaic": Mosaic(), "BoxMixUp": BoxMixUp()}
    names = [*theirs, "mixup", "mosaic", "Mosaic", "BoxMixUp"]
    sides: dict[str, Side] = {}
    for name in names:
        ours = classes[name] if name in classes else box_augmentation_for(name, (side, side))
        assert ours is not None
        sides[name] = unprepared(partial(ours, images, annotations))
    for name, stages in theirs.items():
        sides[f"torchvision's {name}"] = unprepared(partial(_one_by_one, v2.Compose(stages), images, annotations))
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (5, 1)).items()}
    against = "torchvision v2, image by image"
    compared = [Row.slowdown(f"`{name}`", against, cpu[name], cpu[f"torchvision's {name}"], "cpu") for name in theirs]
    return [*compared, *(Row(f"`{name}`", "", cpu[name], "cpu") for name in names if name not in theirs)]


def _scenes(count: int, side: int) -> tuple[Tensor, Annotations]:
    """Windows of scikit-learn's photograph of a temple, stretched, with boxes anywhere."""
    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    generator = torch.Generator().manual_seed(0)
    lefts = torch.linspace(0, 640 - 400, count).long().tolist()
    windows = [photograph[..., 20:420, left : left + 400] for left in lefts]
    images = torch.stack([v2.functional.resize(window, [side, side]) for window in windows])
    starts = torch.rand(count, OBJECTS, 2, generator=generator) * 0.7
    boxes = torch.cat([starts, starts + 0.05 + 0.25 * torch.rand(count, OBJECTS, 2, generator=generator)], 2) * side
    return images, pack_boxes(list(boxes), [torch.ones(OBJECTS)] * count, (side, side))


def _one_by_one(transform: v2.Transform, images: Tensor, annotations: Annotations) -> tuple[Tensor, list[Tensor]]:
    pixels, boxes = [], []
    size = (images.shape[2], images.shape[3])
    for image, target in zip(images, annotations.targets(), strict=True):
        own = {
            "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size),
            "labels": target["labels"],
        }
        changed, moved = transform(tv_tensors.Image(image), own)
        pixels.append(changed)
        boxes.append(moved["boxes"])
    return torch.stack(pixels), boxes
