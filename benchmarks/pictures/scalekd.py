"""The picture of ScaleKD: what the second view takes away from a map, and what that does to a comparison."""

import torch
from matplotlib.figure import Figure
from scipy.fft import dctn
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from lightning_vision.callbacks.distillation.dual_view import split_dc, token_distance

__all__ = ["draw"]

SIDE = 14


def draw() -> Figure:
    """A channel of a map as it is, its cosine transform, and without DC component; and the two views' distances."""
    maps = _maps()
    tokens = maps.flatten(2).transpose(1, 2)
    rest = split_dc(tokens)[1]
    figure = Figure(figsize=(10, 2.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1.6))
    spectrum = torch.from_numpy(dctn(maps[0, 0].numpy(), norm="ortho")).abs().log10()
    panels = {
        "features as they are": (maps[0, 0], "viridis"),
        "their cosine transform, log": (spectrum.clamp(min=-2), "magma"),
        "features without DC component": (rest[0, :, 0].view(SIDE, SIDE), "RdBu_r"),
    }
    for axes, (title, (picture, colours)) in zip(left.subplots(1, 3), panels.items(), strict=True):
        largest = float(picture.abs().max())
        limits = {"vmin": -largest, "vmax": largest} if colours == "RdBu_r" else {}
        axes.imshow(picture, cmap=colours, **limits)
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
    axes = right.subplots()
    places = torch.roll(tokens, SIDE // 2, dims=1)
    shares = torch.linspace(0, 1, 21)
    views: dict[str, list[float]] = {"as they are": [], "without DC component": []}
    for share in shares:
        student = torch.lerp(tokens, places, share)
        views["as they are"].append(float(token_distance(student, tokens)))
        views["without DC component"].append(float(token_distance(split_dc(student)[1], rest)))
    for (name, values), colour in zip(views.items(), ("0.55", "C3"), strict=True):
        axes.plot(shares, values, colour, label=name)
    axes.set(xlabel="share of features from a wrong place", ylabel="distance to the teacher", ylim=(-15, 600))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _maps() -> Tensor:
    """Six channels `(1, 6, SIDE, SIDE)` of a photograph: colours, and how they change from place to place."""
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy()).float().permute(2, 0, 1)[None] / 255
    small = adaptive_avg_pool2d(photo[..., 100:600], SIDE + 1)
    along = small[..., 1:, :-1] - small[..., :-1, :-1]
    return torch.cat([small[..., :-1, :-1], along], dim=1) + 0.8
