"""What a training with growing images takes beside one on whole images, and what a batch's resizing costs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torchvision.transforms.v2 import functional as theirs
from torchvision.tv_tensors import BoundingBoxes

from lightning_vision.backbones import create
from lightning_vision.callbacks import ProgressiveResizing

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

SIZE = (128, 128)


def rows(quick: bool) -> list[Row]:
    """Fits of ResNet-20 on images of 32 pixels; a batch of detection, images of 256 pixels with 20 boxes each, halved.

    Args:
        quick: One repetition of few and small batches.
    """
    batches = batches_of(8 if quick else 64, 2 if quick else 12)
    count = 2 if quick else 16
    images, boxes = torch.rand(count, 3, 256, 256), 100 * torch.rand(count, 20, 2).repeat(1, 1, 2)
    boxes[..., 2:] += 50
    targets = [{"boxes": each} for each in boxes]
    resizing = ProgressiveResizing()

    def plain() -> Plain:
        torch.manual_seed(0)
        return Plain(create("resnet20_cifar", num_classes=10, in_channels=3))

    sides: dict[str, Side] = {
        "ours": fitting(plain, batches, 1, ProgressiveResizing),
        "whole": fitting(plain, batches, 1),
        "full": fitting(plain, batches, 1, partial(ProgressiveResizing, start=1.0)),
        "batch": unprepared(lambda: resizing.change_at((images, targets), 0.0)),
        "torchvision": unprepared(_torchvisions(images, targets)),
    }
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    fit = "a fit with `ProgressiveResizing`"
    return [
        Row.slowdown(fit, "without, on whole images", times["ours"], times["whole"], "cpu", "<= 0.85"),
        Row.slowdown(f"{fit} switched off", "without", times["full"], times["whole"], "cpu"),
        Row.slowdown(
            "a batch of 16 images and 320 boxes, halved",
            "torchvision's `resize`, image by image",
            times["batch"],
            times["torchvision"],
            "cpu",
            "<= 1.10",
        ),
    ]


def _torchvisions(images: torch.Tensor, targets: list[dict[str, Any]]) -> Callable[[], Any]:
    """The same batch by torchvision's transforms, which know a box by its type."""
    height, width = images.shape[-2:]
    known = [BoundingBoxes(it["boxes"], format="XYXY", canvas_size=(height, width)) for it in targets]  # type: ignore[call-arg]

    def run() -> Any:
        return [
            (theirs.resize(image, list(SIZE), antialias=True), theirs.resize(boxes, list(SIZE)))
            for image, boxes in zip(images, known, strict=True)
        ]

    return run
