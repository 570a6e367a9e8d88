"""The picture of attention transfer: where a layer of a network that reads digits looks, by the power p."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import attention_map

from ._trained_digits import digits, trained

__all__ = ["draw"]

POWERS = (1.0, 2.0, 4.0)


def draw() -> Figure:
    """Six digits, and the attention of the second convolution of a small network, for three powers."""
    images, labels = digits()
    network, images = trained(labels, 10), images[:6]
    with torch.no_grad():
        features = network[:4](images)
    figure = Figure(figsize=(8, 5.2))
    rows = figure.subplots(1 + len(POWERS), 6)
    for column, image in enumerate(images[:, 0]):
        rows[0][column].imshow(image, cmap="gray_r")
    for row, power in zip(rows[1:], POWERS, strict=True):
        for axes, attention in zip(row, attention_map(features, power), strict=True):
            axes.imshow(attention, cmap="magma", vmin=0)
        row[0].set_ylabel(f"p = {power:g}")
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    figure.tight_layout()
    return figure
