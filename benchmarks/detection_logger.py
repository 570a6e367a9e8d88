"""What a sheet of detections costs, beside the batches that are validated and beside the boxes of others."""

from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.utils import draw_bounding_boxes

from lightning_vision.callbacks import DetectionLogger
from lightning_vision.callbacks.evaluation._boxes import box_sheet

from .fits import Plain
from .side_by_side import Row, Side, take_turns, unprepared
from .validations import validating

__all__ = ["rows"]

Marked = list[tuple[list[float], str]]


class Detector(Plain):
    """torchvision's Faster R-CNN on MobileNet, random weights, on images of 128 pixels."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            fasterrcnn_mobilenet_v3_large_320_fpn(
                weights=None, weights_backbone=None, num_classes=11, min_size=128, max_size=128
            )
        )

    def forward(self, images: Tensor) -> Any:
        return self.network(list(images))

    def validation_step(self, batch: Any) -> None:
        self(batch[0])


def rows(quick: bool) -> list[Row]:
    """Validate on batches of 8 images with and without; draw 8 images with 6 true and 6 found boxes each.

    Args:
        quick: One repetition of one batch.
    """
    count, repetitions = (1, (1, 0)) if quick else (6, (7, 1))
    generator = torch.Generator().manual_seed(0)
    corners = 80 * torch.rand(8, 6, 2, generator=generator)
    boxes = torch.cat([corners, corners + 30], 2)
    targets = [{"boxes": each, "labels": torch.arange(1, 7)} for each in boxes]
    batch = (torch.rand(8, 3, 128, 128, generator=generator), targets)
    pictures = [(255 * it).byte().permute(1, 2, 0).contiguous().numpy() for it in batch[0]]
    marked: list[Marked] = [[(box, "cat 0.97") for box in each.tolist()] for each in boxes]
    with TemporaryDirectory() as folder:
        sides: dict[str, Side] = {
            "plain": validating([batch] * count, folder, kind=Detector),
            "ours": validating([batch] * count, folder, DetectionLogger(score_threshold=0.0), kind=Detector),
            "sheet": unprepared(lambda: box_sheet(pictures, marked, marked)),
            "torchvision": unprepared(lambda: _torchvisions(batch[0], boxes)),
            "axes": unprepared(lambda: _axes(pictures, marked)),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *repetitions).items()}
    sheet = "8 images with 96 boxes and their words, a sheet"
    return [
        Row.slowdown("a validation of 6 batches with the logger", "without it", times["ours"], times["plain"], "cpu"),
        Row.slowdown(
            sheet, "torchvision's `draw_bounding_boxes`, no sheet", times["sheet"], times["torchvision"], "cpu"
        ),
        Row.slowdown(sheet, "a matplotlib `Figure` of 8 axes", times["sheet"], times["axes"], "cpu", "<= 1.00"),
    ]


def _torchvisions(images: Tensor, boxes: Tensor) -> list[Tensor]:
    """Both kinds of boxes on images that are enlarged alike."""
    drawn = []
    for image, each in zip((255 * images).byte(), boxes, strict=True):
        large = image.repeat_interleave(2, 1).repeat_interleave(2, 2)
        for colour in ("blue", "orange"):
            large = draw_bounding_boxes(large, 2 * each, ["cat 0.97"] * len(each), colour, width=2)
        drawn.append(large)
    return drawn


def _axes(pictures: list[np.ndarray[Any, Any]], marked: list[Marked]) -> None:
    figure = Figure(figsize=(10, 5))
    for axes, picture, boxes in zip(figure.subplots(2, 4).flat, pictures, marked, strict=True):
        axes.imshow(picture)
        axes.set_axis_off()
        for colour in ("blue", "orange"):
            for (left, top, right, bottom), words in boxes:
                axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=colour))
                axes.text(left, top, words, fontsize=6)
    FigureCanvasAgg(figure).draw()
