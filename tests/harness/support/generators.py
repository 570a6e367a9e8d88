"""Tiny modules that make images of 8 x 8 pixels, and a network of one layer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.generation.diffusion_model import DiffusionModel

__all__ = ["OneLayer", "tiny_diffusion"]


class OneLayer(nn.Module):
    """A convolution of the image, plus a number for the time and one for the label (`classes` stands for none)."""

    def __init__(self, in_channels: int = 1, out_channels: int = 1, classes: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.label = nn.Embedding(classes + 1, 1)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        said = 0.0 if label is None else self.label(label)[:, :, None, None]
        found: Tensor = self.layer(x) + time[:, None, None, None] + said
        return found


def tiny_diffusion(**settings: Any) -> DiffusionModel:
    """A UNet of few channels for 8-pixel images of three classes, always of the same first weights."""
    torch.manual_seed(0)
    given = {
        "network_settings": {"channels": 8, "multiples": (1, 2), "blocks": 1, "attention": (), "head_dim": 8},
        "num_classes": 3,
        "in_channels": 1,
        "image_size": 8,
        "steps": 4,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }
    return DiffusionModel(**given | settings)
