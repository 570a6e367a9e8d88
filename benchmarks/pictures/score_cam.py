"""The picture of ScoreCAMLogger: an image seen through three of the maps, and the map that their scores give."""

from matplotlib.figure import Figure

from lightning_vision.callbacks import score_cam
from lightning_vision.callbacks.explain.score_cam import score_cam_masks
from lightning_vision.inspection.layers import read_maps

from ._digit_filters import DigitFilters, show, three_digits

__all__ = ["draw"]

ASKED = 3


def draw() -> Figure:
    """Digits 3, 7 and 0 through the maps of the filters for 0, 3 and 7; under each the logit of 3 that it earns."""
    image, network = three_digits(), DigitFilters()
    maps = read_maps(network, image, "maps")[0][0]
    figure = Figure(figsize=(10, 1.7), layout="constrained")
    axes = figure.subplots(1, 5)
    show(axes[0], image[0, 0], "image", "gray_r")
    for axis, label in zip(axes[1:4], (0, 3, 7), strict=True):
        seen = image * score_cam_masks(maps[label : label + 1], image)[:, None]
        show(axis, seen[0, 0], f"through the map for {label}", "gray_r")
        axis.set_xlabel(f"logit of {ASKED}: {float(network(seen)[0, ASKED].detach()):.1f}")
    show(axes[4], score_cam(network, image, "maps", ASKED)[0], f"Score-CAM of {ASKED}")
    return figure
