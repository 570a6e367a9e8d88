"""The picture of GenerationScores: digits that stand for made ones, and what the scores say of them."""

from typing import Any

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import score_features

from ..study_generation_scores import ARMS, split
from ._trained_digits import digits, trained

__all__ = ["draw"]

ROWS, SHOWN = ("other digits", "70 of them, ten times", "noise of 0.3", "turned upside down"), 12


def draw() -> Figure:
    """A row of images for each of four sets beside its Frechet distance, precision, recall, density and coverage."""
    images, labels = digits()
    network = trained(labels, 10)[:-1]
    real, other = split(0)
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    axes: Any = figure.subplots(len(ROWS), SHOWN + 1, width_ratios=[1] * SHOWN + [5.5])
    for line, name in zip(axes, ROWS, strict=True):
        made = ARMS[name](images[other], labels[other], torch.Generator().manual_seed(0))
        with torch.no_grad():
            found = score_features(network(images[real]), network(made))
        for place, axis in enumerate(line[:-1]):
            # Of images that come again some do.
            axis.imshow(made[place % 4 if "ten times" in name else place, 0], cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name.replace(", ", ",\n").replace("turned ", "turned\n"), fontsize=8)
        told = [f"fid {found['fid']:.1f}", *(f"{key} {found[key]:.2f}" for key in list(found)[2:])]
        line[-1].set_axis_off()
        line[-1].text(0, 0.5, f"{told[0]}\n{'  '.join(told[1:3])}\n{'  '.join(told[3:])}", va="center", fontsize=9)
    return figure
