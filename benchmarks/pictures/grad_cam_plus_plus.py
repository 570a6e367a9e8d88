"""The picture of GradCAMPlusPlusLogger: its paper's example of three maps that speak as clearly."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.explain.grad_cam import grad_cam_maps
from lightning_vision.callbacks.explain.grad_cam_plus_plus import grad_cam_plus_plus_maps

from ._digit_filters import show

__all__ = ["draw"]


def draw() -> Figure:
    """Objects of 15, 4 and 2 places, a map each, in which the score's gradient is 1 where the object is."""
    maps = torch.zeros(1, 3, 8, 10)
    maps[0, 0, 1:6, 1:4] = 1
    maps[0, 1, 1:3, 7:9] = 1
    maps[0, 2, 6, 6:8] = 1
    figure = Figure(figsize=(10, 2), layout="constrained")
    axes = figure.subplots(1, 5)
    for number, (axis, one) in enumerate(zip(axes, maps[0], strict=False), 1):
        show(axis, one, f"map {number}, {int(one.sum())} places", "gray_r")
    show(axes[3], grad_cam_maps(maps, maps)[0], "Grad-CAM: by their size")
    show(axes[4], grad_cam_plus_plus_maps(maps, maps)[0], "Grad-CAM++: nearer to equal")
    return figure
