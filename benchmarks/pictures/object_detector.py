"""The picture of ObjectDetector: which map finds objects of which size, by architecture and by `object_sizes`."""

from itertools import pairwise

from matplotlib.figure import Figure

from lightning_vision.detection.anchors import spread_sizes
from lightning_vision.detection.settings import DetectorSettings

__all__ = ["draw"]

CASES = ((800, (0.04, 1.0)), (128, (0.04, 1.0)), (128, (0.11, 0.44)))
STRIDES = (8, 16, 32, 64, 128)


def draw() -> Figure:
    """Sides of RetinaNet's anchors and ranges of FCOS on five maps, for three pairs of image and objects."""
    figure = Figure(figsize=(10.5, 2.6))
    for axes, (side, sizes) in zip(figure.subplots(1, len(CASES), sharey=True), CASES, strict=True):
        sides = spread_sizes(DetectorSettings(1, (side, side), sizes), len(STRIDES), 3)
        bounds = [(finer[-1] * coarser[0]) ** 0.5 for finer, coarser in pairwise(sides)]
        edges = [0.5 * sides[0][0], *bounds, 2 * sides[-1][-1]]
        for level, anchors in enumerate(sides):
            axes.barh(level, edges[level + 1] - edges[level], left=edges[level], height=0.6, color="0.88")
            axes.plot(anchors, [level] * len(anchors), "s", color="C0", markersize=5)
        axes.axvline(side, color="C3", linewidth=1)
        axes.set_xscale("log")
        axes.set_title(f"image of {side} pixels, {sizes[0]:g} to {sizes[1]:g}", fontsize=10)
        axes.set_xlabel("pixels")
        axes.set_yticks(range(len(STRIDES)), [f"stride {stride}" for stride in STRIDES])
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
