"""What an attribution by name costs beside the same one of captum asked by hand."""

from functools import partial
from typing import Any

import timm
import torch
from captum.attr import IntegratedGradients, Occlusion, Saliency

from lightning_vision.callbacks import attribute

from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]

WINDOWS: dict[str, Any] = {"sliding_window_shapes": (3, 16, 16), "strides": (3, 16, 16)}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Saliency": (Saliency, {}),
    "IntegratedGradients": (IntegratedGradients, {"n_steps": 10}),
    "Occlusion": (Occlusion, WINDOWS),
}


def rows(quick: bool) -> list[Row]:
    """Explain 8 images of 64 pixels by `resnet18`.

    Args:
        quick: One repetition of two images.
    """
    count = 2 if quick else 8
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(count)
    model = timm.create_model("resnet18", num_classes=10).eval()
    found = []
    for name, (kind, arguments) in KINDS.items():
        sides: dict[str, Side] = {
            "ours": unprepared(partial(attribute, model, images, name, classes, arguments=arguments)),
            "captum": unprepared(
                partial(kind(model).attribute, images.clone().requires_grad_(), target=classes, **arguments)
            ),
        }
        times = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
        what = f"`{name}` of 8 images of 64 pixels, resnet18"
        found.append(Row.slowdown(what, "captum by hand, class given", times["ours"], times["captum"], "cpu"))
    return found
