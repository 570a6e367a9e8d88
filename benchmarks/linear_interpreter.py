"""What contributions of pixels cost: a linear interpreter against captum's input times gradient, which has no bias."""

from typing import Any

import timm
import torch
from captum.attr import InputXGradient
from torch import Tensor, nn

from lightning_vision.callbacks import LinearInterpreter

from .maps import beside_a_forward
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 128},
}


def rows(quick: bool) -> list[Row]:
    """Explain 16 images of 128 pixels by each network.

    Args:
        quick: One repetition of two images.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2 if quick else 16, 3, 128, 128, generator=generator)
    found = []
    for name, settings in NETWORKS.items():
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=10, **settings).eval()
        sides: dict[str, Side] = {"ours": _ours(model, images), "captum": _captum(model, images)}
        times = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
        what = f"contributions and bias of 16 images of 128 pixels, {name}"
        found.append(Row.slowdown(what, "captum's `InputXGradient`", times["ours"], times["captum"], "cpu"))
    contributions = beside_a_forward(
        "the same", lambda model, images: LinearInterpreter(model).terms(images), quick, 16
    )
    return [*found, contributions]


def _ours(model: nn.Module, images: Tensor) -> Side:
    return lambda: lambda: LinearInterpreter(model).terms(images)


def _captum(model: nn.Module, images: Tensor) -> Side:
    return lambda: lambda: InputXGradient(model).attribute(images.clone().requires_grad_(), target=0)
