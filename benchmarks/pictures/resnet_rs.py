"""What ResNet-RS sees of a photograph: twelve draws of the recipe's augmentation."""

import torch
from matplotlib.figure import Figure

from ._photographs import described, temple

__all__ = ["draw"]

SIDE, DRAWS = 72, 12


def draw() -> Figure:
    """The photograph, then crops with two operations each at RandAugment's full strength."""
    photograph = temple(SIDE + 14)
    images = described("resnet_rs", SIDE)(photograph.repeat(DRAWS, 1, 1, 1), torch.Generator().manual_seed(0))
    figure = Figure(figsize=(9, 2.9), layout="constrained")
    axes = figure.subplots(2, 7)
    shown = [photograph, *images[:6], None, *images[6:]]
    for axis, image in zip(axes.flat, shown, strict=True):
        axis.set_axis_off()
        if image is not None:
            # Few colours keep the file small.
            axis.imshow((image // 16 * 17).permute(1, 2, 0), interpolation="nearest")
    axes[0, 0].set_title("a photograph", fontsize=9)
    axes[0, 1].set_title("what training sees of it", fontsize=9, loc="left")
    return figure
