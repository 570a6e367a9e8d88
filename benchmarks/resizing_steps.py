"""What a training step takes at each size through which `ProgressiveResizing` goes, its resizing included."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lightning_vision.backbones import create
from lightning_vision.callbacks.schedules.progressive_resizing import resize_images

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

WHOLE, SIDES = 64, (32, 40, 48)


def rows(quick: bool) -> list[Row]:
    """Forwards and backwards of ResNet-8 for images of 64 pixels, resized and whole.

    Args:
        quick: One repetition of two images.
    """
    torch.manual_seed(0)
    network = create("resnet8_cifar", num_classes=10, in_channels=3)
    images = torch.rand(2 if quick else 32, 3, WHOLE, WHOLE)
    labels = torch.arange(len(images)) % 10

    def step(side: int) -> Callable[[], Any]:
        def run() -> None:
            network.zero_grad()
            F.cross_entropy(network(resize_images(images, (side, side))), labels).backward()

        return run

    sides = {str(side): unprepared(step(side)) for side in (*SIDES, WHOLE)}
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (21, 2)).items()}
    whole = times[str(WHOLE)]
    return [
        Row.slowdown(
            f"a step on images made {side}x{side}", f"on whole ones of {WHOLE}x{WHOLE}", times[str(side)], whole, "cpu"
        )
        for side in SIDES
    ]
