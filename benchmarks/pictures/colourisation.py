"""The picture of ColourisationGAN: a photograph without colours, with made ones and with its own."""

from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

from lightning_vision.generation import ColourisationGAN
from lightning_vision.generation.lab import from_lab, to_lab
from lightning_vision.images import convert_image

__all__ = ["draw"]

SIDE, STEPS = 64, 80


def draw() -> Figure:
    """The left half of a photograph is learned, in its own and in mirror image; colours are made for both halves."""
    photograph = convert_image(Image.fromarray(load_sample_image("china.jpg")), 3, (SIDE, 2 * SIDE)).float() / 255
    halves = torch.stack(photograph.split(SIDE, dim=2)) * 2 - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ColourisationGAN(channels=16, image_size=SIDE)
        adams = [
            torch.optim.Adam(it.parameters(), lr=2e-3, betas=(0.5, 0.999))
            for it in (model.network.discriminator, model.network.generator)
        ]
        for _ in range(STEPS):
            forgery = model.forge((torch.stack([halves[0], halves[0].flip(2)]),), 0)
            for adam, terms in zip(adams, (model.discriminator_terms, model.generator_terms), strict=True):
                model.zero_grad()
                next(iter(terms(forgery).values())).backward()
                adam.step()
    made = torch.cat(list(from_lab(model.lab(halves))), dim=2)
    lab = to_lab(photograph[None])
    grey = from_lab(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], dim=1))[0]
    figure = Figure(figsize=(8, 1.75), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    names = ("without colours", "made: learned | never seen", "its own")
    for axis, name, pixels in zip(axes, names, (grey, made, photograph), strict=True):
        axis.imshow(pixels.permute(1, 2, 0))
        axis.set_title(name, fontsize=9)
        axis.axis("off")
    axes[1].axvline(SIDE - 0.5, color="white", linestyle="--", linewidth=1)
    return figure
