"""Photographs and digits in four rotations, which RotNet is to tell apart."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.rotnet import rotations_of

__all__ = ["draw"]

SIDE = 64


def draw() -> Figure:
    """Columns: the label of each rotation; of a zero two are hard to tell from the others."""
    digits = next(iter(PlacedDigits(batch_size=64).val_dataloader()))
    seven, zero = (digits[0][digits[1] == label][:1] / 255 for label in (7, 0))
    figure = Figure(figsize=(5, 4.2), layout="constrained")
    axes = figure.subplots(3, 4)
    for row, image in zip(axes, (_temple(), seven, zero), strict=True):
        for label, (axis, turned) in enumerate(zip(row, rotations_of(image), strict=True)):
            shown = turned[0].permute(1, 2, 0)
            axis.imshow(shown, cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            if image.shape[1] == 3:
                axis.set_title(f"{label}: {90 * label} degrees", fontsize=9)
    return figure


def _temple() -> Tensor:
    """A square of scikit-learn's photograph, in few pixels and colours: float `(1, 3, SIDE, SIDE)`, 0..1."""
    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)[None, :, :420, 110:530]
    small = torch.nn.functional.interpolate(photograph / 255, (SIDE, SIDE), mode="bilinear", antialias=True)
    return (small * 31).round() / 31
