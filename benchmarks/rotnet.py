"""Four rotations of a batch against torchvision's, image by image and of the whole batch."""

from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import rotate

from lightning_vision.self_supervised.rotnet import rotations_of

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Turn 64 images of 224 pixels in four ways, and 512 of 32.

    Args:
        quick: One repetition with two images.
    """
    return [*_rows(64, 224, quick), *_rows(512, 32, quick)]


def _rows(count: int, side: int, quick: bool) -> list[Row]:
    images = torch.rand(2 if quick else count, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotations_of(images), _turned(images), atol=1e-4)
    sides = {
        "ours": unprepared(partial(rotations_of, images)),
        "batch": unprepared(partial(_turned, images)),
        "each": unprepared(lambda: [_turned(image[None]) for image in images]),
    }
    times = take_turns(sides, *(1, 0) if quick else (7, 1))
    what = f"`rotations_of`, {count} images of {side} pixels"
    return [
        Row.slowdown(what, f"torchvision, {name}", times["ours"]["cpu"], times[peer]["cpu"], "cpu", bar)
        for name, peer, bar in (("the batch at once", "batch", "<= 1.00"), ("image by image", "each", ""))
    ]


def _turned(images: Tensor) -> Tensor:
    return torch.stack([rotate(images, 90.0 * turn) for turn in range(4)])
