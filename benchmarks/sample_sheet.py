"""What a sheet of made images costs, beside making them and beside torchvision's file of them."""

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torchvision.utils import save_image

from lightning_vision.callbacks import SampleSheet
from lightning_vision.callbacks.hooks._image_grid import image_grid

from .fits import batches_of
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import Paints, validating

__all__ = ["rows"]

IMAGES = 64


def rows(quick: bool) -> list[Row]:
    """Validate with a sheet of 64 images and without; draw and write one.

    Args:
        quick: One repetition.
    """
    bytes_ = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    large = bytes_.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) / 255
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": validating(batches_of(32, 2), folder, kind=Paints),
            "ours": validating(batches_of(32, 2), folder, SampleSheet(samples=IMAGES), kind=Paints),
            "made": _making,
            "drawn": unprepared(
                lambda: Image.fromarray(image_grid(bytes_, 8)).save(f"{folder}/a.png", compress_level=1)
            ),
            "theirs": unprepared(lambda: save_image(large, f"{folder}/b.png")),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    added = [ours - plain for ours, plain in zip(times["ours"], times["plain"], strict=True)]
    sheet = f"drawing {IMAGES} images of 32 pixels, and the file"
    return [
        Row.slowdown(f"what a sheet of {IMAGES} images adds", "making them", added, times["made"], "cpu", "<= 1.30"),
        Row.slowdown(sheet, "making the images", times["drawn"], times["made"], "cpu", "<= 0.10"),
        Row.slowdown(sheet, "torchvision's `save_image`, as large", times["drawn"], times["theirs"], "cpu", "<= 1.00"),
    ]


def _making() -> Callable[[], Any]:
    module = Paints().eval()

    def run() -> None:
        with torch.no_grad():
            module.sample(IMAGES)

    return run
