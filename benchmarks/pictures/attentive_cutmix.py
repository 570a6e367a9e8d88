"""Eight digits, where an untrained network looks in their partners, and the digits with those cells pasted in."""

from contextlib import nullcontext

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

from lightning_vision.backbones import create
from lightning_vision.callbacks import AttentiveCutMix
from lightning_vision.callbacks.hooks._attention_maps import AttentionMaps
from lightning_vision.callbacks.mixing.attentive_cutmix import AttentiveCutMixDraw, top_cells

__all__ = ["draw"]


def draw() -> Figure:
    """Rows: own image, partner's, its attention, mixture; 4 of 4x4 cells, outlined."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:8]).float().view(8, 1, 8, 8) / 16
    method = AttentiveCutMix(top_n=4)
    partner = method.draw(images.shape, np.random.default_rng(2)).partner
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = create("resnet8_cifar", num_classes=10, in_channels=1)
    attention = AttentionMaps("the picture", network, 16, None, None, nullcontext)(images)
    mix = method.mix(images, AttentiveCutMixDraw(partner, attention))
    cells = top_cells(attention[partner], 4)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(4, 8)
    for column in range(8):
        other = int(partner[column])
        shown = (images[column, 0], images[other, 0], attention[other], mix.images[column, 0])
        for axis, image, colours in zip(axes[:, column], shown, ("gray_r", "gray_r", "viridis", "gray_r"), strict=True):
            axis.imshow(image, cmap=colours, extent=(0, 8, 8, 0))
            axis.set(xticks=[], yticks=[])
            if axis is not axes[0, column]:
                for row, left in cells[column].nonzero().tolist():
                    axis.add_patch(Rectangle((2 * left, 2 * row), 2, 2, fill=False, edgecolor="tab:orange", lw=1.5))
        axes[3, column].set_xlabel(f"{mix.lam:.2f} of {labels[column]}\n{1 - float(mix.lam):.2f} of {labels[other]}")
    for name, row in zip(("own", "partner's", "attention", "mixed"), axes, strict=True):
        row[0].set_ylabel(name)
    return figure
