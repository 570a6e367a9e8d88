"""The picture of LayerCAMLogger: a gradient that differs from place to place, and what two methods make of it."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import grad_cam, layer_cam
from lightning_vision.inspection.layers import read_layer

from ._digit_filters import DigitFilters, show, three_digits

__all__ = ["draw"]

ASKED = 7


def draw() -> Figure:
    """Digits 3, 7 and 0; the filter of 7 answers to parts of the others, too, and the score is that of 7."""
    image, network = three_digits(), DigitFilters(gain=700.0)
    reading = read_layer(network, image, "maps", ASKED)
    assert reading.gradient is not None
    figure = Figure(figsize=(10, 1.5), layout="constrained")
    axes = figure.subplots(1, 5)
    show(axes[0], image[0, 0], "image", "gray_r")
    show(axes[1], reading.activation[0, ASKED], f"map of the filter for {ASKED}")
    show(axes[2], torch.relu(reading.gradient[0, ASKED]), "the score's gradient there")
    show(axes[3], grad_cam(network, image, "maps", ASKED)[0], "Grad-CAM: one weight a map")
    show(axes[4], layer_cam(network, image, "maps", ASKED)[0], "Layer-CAM: one a place")
    return figure
