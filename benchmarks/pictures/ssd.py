"""The picture of SSD: the default boxes of one place of each map, and those of an image that learn its objects."""

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from torchvision.models.detection._utils import SSDMatcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lightning_vision.detection.settings import DetectorSettings
from lightning_vision.detection.ssd import default_boxes

__all__ = ["draw"]

SIDE, STRIDES, SHAPES = 300, (8, 16, 32, 64, 100, 300), ([2], [2, 3], [2, 3], [2, 3], [2], [2])
OBJECTS = torch.tensor([[40.0, 60.0, 130.0, 250.0], [190.0, 40.0, 222.0, 76.0], [200.0, 180.0, 290.0, 240.0]])


def draw() -> Figure:
    """Default boxes about the middle of each map, and in the last panel the boxes that learn three objects."""
    boxes = default_boxes(DetectorSettings(1, (SIDE, SIDE)), STRIDES, SHAPES)
    maps = [torch.zeros(1, 1, -(-SIDE // stride), -(-SIDE // stride)) for stride in STRIDES]
    found: Tensor = boxes(ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)]), maps)[0]
    numbers = boxes.num_anchors_per_location()
    figure = Figure(figsize=(12, 2.2))
    *panels, last = figure.subplots(1, len(STRIDES) + 1)
    parts = found.split([it.shape[2] ** 2 * number for it, number in zip(maps, numbers, strict=True)])
    for axes, part, number, it in zip(panels, parts, numbers, maps, strict=True):
        cells = it.shape[2]
        middle = cells // 2 * (cells + 1) * number
        _boxes(axes, part[middle : middle + number], "C0", 1.2)
        axes.set_title(f"{cells} x {cells} x {number}", fontsize=10)
    matched = SSDMatcher(0.5)(box_iou(OBJECTS, found))
    _boxes(last, found[matched >= 0], "C1", 0.6)
    _boxes(last, OBJECTS, "black", 1.6)
    last.set_title(f"{int((matched >= 0).sum())} of {len(found):,} learn", fontsize=10)
    figure.tight_layout()
    return figure


def _boxes(axes: Axes, boxes: Tensor, colour: str, width: float) -> None:
    for left, top, right, bottom in boxes.tolist():
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width)
        )
    axes.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[], aspect="equal")
