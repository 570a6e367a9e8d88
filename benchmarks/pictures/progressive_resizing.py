"""The picture of ProgressiveResizing: one scene with its boxes as training sees it from the first to the last step."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import ProgressiveResizing
from lightning_vision.callbacks.evaluation._boxes import with_boxes
from lightning_vision.datamodules import DigitScenes

__all__ = ["draw"]

MOMENTS = (0.0, 0.2, 0.4, 0.6, 0.9)


def draw() -> Figure:
    """A scene of digits at five moments of the training, pixels in their true proportion, boxes moved along."""
    data = DigitScenes(val_images=1, batch_size=1)
    data.setup("validate")
    image, annotations, _ = next(iter(data.val_dataloader()))
    resizing = ProgressiveResizing(multiple=16)
    figure = Figure(figsize=(9, 2.4), layout="constrained")
    axes = figure.subplots(1, len(MOMENTS), width_ratios=[1] * len(MOMENTS))
    for part, done in zip(axes, MOMENTS, strict=True):
        small, (target,) = resizing.change_at((image, annotations.targets()), done)
        side = small.shape[-1]
        pixels = small[0].permute(1, 2, 0).to(torch.uint8).numpy()
        boxes = [(box, "") for box in target["boxes"].tolist()]
        picture = with_boxes(np.ascontiguousarray(pixels), boxes, [])
        part.imshow(picture, extent=(0, side, side, 0), interpolation="nearest")
        part.set_xlim(0, 128)
        part.set_ylim(128, 0)
        part.set_title(f"{done:.0%} done: {side} pixels", fontsize=9)
        part.set_axis_off()
    return figure
