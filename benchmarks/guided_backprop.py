"""What guided gradients cost, alone and weighted by Grad-CAM, against captum's."""

import timm
import torch
from captum.attr import GuidedBackprop, GuidedGradCam

from lightning_vision.callbacks import guided_backprop, guided_grad_cam

from .maps import beside_a_forward
from .side_by_side import Row, Side, take_turns, unprepared

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Explain 16 images of 128 pixels by `resnet18`.

    Args:
        quick: One repetition of two images.
    """
    count = 2 if quick else 16
    images = torch.randn(count, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    classes = torch.arange(count) % 10
    model = timm.create_model("resnet18", num_classes=10).eval()
    theirs, weighted = GuidedBackprop(model), GuidedGradCam(model, model.layer4)
    sides: dict[str, Side] = {
        "ours": unprepared(lambda: guided_backprop(model, images, classes)),
        "captum": unprepared(lambda: theirs.attribute(images.clone().requires_grad_(), classes)),
        "our cam": unprepared(lambda: guided_grad_cam(model, images, "layer4", classes)),
        "captum cam": unprepared(
            lambda: weighted.attribute(images.clone().requires_grad_(), classes, interpolate_mode="bilinear")
        ),
    }
    times = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    what = "16 images of 128 pixels, resnet18"
    return [
        Row.slowdown(f"guided gradients, {what}", "captum's `GuidedBackprop`", times["ours"], times["captum"], "cpu"),
        Row.slowdown(
            f"Guided Grad-CAM, {what}", "captum's `GuidedGradCam`", times["our cam"], times["captum cam"], "cpu"
        ),
        beside_a_forward("guided gradients", guided_backprop, quick, 16),
    ]
