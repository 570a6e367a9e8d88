"""The picture of TrAct: how far a step moves pre-activations, by the contrast of images and along their directions."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks import layer_columns, second_moment, tract_gradient
from lightning_vision.datamodules import Digits

__all__ = ["draw"]

LAMBDAS = {0.1: "C3", 1.0: "C1"}


def draw() -> Figure:
    """A 3x3 convolution on 256 digits: plain descent and TrAct, with the gradient by pre-activations held fixed."""
    data = Digits()
    data.setup()
    images = data.train_set.images[:256].float() / 255
    images = (images - images.mean()) / images.std()
    columns = layer_columns(nn.Conv2d(1, 8, 3, padding=1), images)
    outer = torch.randn(8, columns.shape[1], generator=torch.Generator().manual_seed(0)) / columns.shape[1]
    figure = Figure(figsize=(10, 3.4))
    contrast, directions = figure.subplots(1, 2)
    scales = torch.logspace(-1, 1, 25)
    moved = {lam: [_moved(a * columns, outer, lam) for a in scales.tolist()] for lam in (None, *LAMBDAS)}
    contrast.plot(scales, moved[None], "0.6", label="plain gradient")
    for lam, colour in LAMBDAS.items():
        contrast.plot(scales, moved[lam], colour, linewidth=2, label=f"TrAct, lambda {lam}")
    contrast.set(xscale="log", yscale="log", xlabel="contrast of the images", ylabel="move of pre-activations")
    spread = torch.linalg.eigvalsh(second_moment([columns])).flip(0)
    places = range(1, len(spread) + 1)
    directions.plot(places, spread, "o-", color="0.6")
    for lam, colour in LAMBDAS.items():
        directions.plot(places, spread / (spread + lam), "o-", color=colour)
    directions.set(yscale="log", xlabel="direction of 3x3 patches, widest first", ylabel="step along it")
    contrast.legend(frameon=False)
    for axes in (contrast, directions):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _moved(columns: torch.Tensor, outer: torch.Tensor, lam: float | None) -> float:
    gradient = outer @ columns.T
    if lam is not None:
        gradient = tract_gradient(gradient, second_moment([columns]), lam)
    return float((gradient @ columns).square().mean().sqrt())
