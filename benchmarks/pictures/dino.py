"""Views of a photograph, who sees them, and what centring and sharpening make of a teacher's answer."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_vision.self_supervised.views import Views
from lightning_vision.self_supervised.views.recipes import dino

__all__ = ["draw"]

SIDE, LOCAL, ANSWERS = 48, 21, 24


def draw() -> Figure:
    """Above: two global views, four local ones, and who sees them; below: an answer, centred, and two temperatures."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    names = ["both branches"] * 2 + ["student"] * 4
    for axis, view, name in zip(above.subplots(1, 6), _views(), names, strict=True):
        axis.imshow(
            (view[0].permute(1, 2, 0) * 15).round().clamp(0, 15) / 15, extent=(0, view.shape[3], 0, view.shape[2])
        )
        axis.set(xlim=(0, SIDE), ylim=(0, SIDE), xticks=[], yticks=[], title=name)
        axis.spines[:].set_visible(False)
    random = torch.Generator().manual_seed(2)
    centre = torch.randn(ANSWERS, generator=random) * 0.15
    answer = centre + torch.randn(ANSWERS, generator=random) * 0.08
    shown = {
        "answer, temperature 0.1": (answer / 0.1).softmax(0),
        "the centre's": (centre / 0.1).softmax(0),
        "centred": ((answer - centre) / 0.1).softmax(0),
        "centred, temperature 0.04": ((answer - centre) / 0.04).softmax(0),
    }
    for axis, (name, shares) in zip(below.subplots(1, 4, sharey=True), shown.items(), strict=True):
        axis.bar(range(ANSWERS), shares, color="C0")
        axis.set(xticks=[], title=name)
    return figure


def _views() -> list[Tensor]:
    photograph = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None, :, :420, 160:580]
    views = Views(dino(SIDE, LOCAL, local_count=4))
    draws = torch.rand(1, views.draws, generator=torch.Generator().manual_seed(1))
    return views(photograph / 255, draws, [0.0] * 3, [1.0] * 3)
