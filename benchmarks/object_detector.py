"""What a training step of `ObjectDetector` under Lightning takes beside a bare loop over the same network."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.detection.detector import ObjectDetector

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

Batch = tuple[Tensor, list[dict[str, Tensor]]]
SIDE, CLASSES, BATCH = 128, 10, 8
ARCHITECTURES = ("fcos", "retinanet", "ssd")


def rows(quick: bool) -> list[Row]:
    """Train one-stage detectors on images of 128 pixels with four objects each.

    Args:
        quick: One repetition of one step.
    """
    steps, repetitions = (1, 1) if quick else (10, 5)
    return [_row(architecture, steps, repetitions) for architecture in ARCHITECTURES]


def _row(architecture: Any, steps: int, repetitions: int) -> Row:
    batches = _batches(steps)
    sides: dict[str, Side] = {
        "bare": lambda: partial(_bare, _detector(architecture), batches),
        "ours": lambda: _under_lightning(_detector(architecture), batches),
    }
    times = take_turns(sides, repetitions)
    bare, ours = ([seconds / steps for seconds in times[name]["cpu"]] for name in sides)
    return Row.slowdown(
        f"training step, `{architecture}`", "the same network in a bare loop", ours, bare, "cpu", "<= 1.05"
    )


def _detector(architecture: Any) -> ObjectDetector:
    torch.manual_seed(0)
    sgd = partial(torch.optim.SGD, lr=0.001)
    return ObjectDetector(
        architecture, "test_resnet", CLASSES, image_size=SIDE, strides=[8, 16], pyramid_channels=64, optimizer=sgd
    )


def _batches(count: int) -> Sequence[Batch]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, BATCH, 3, SIDE, SIDE, generator=draw)
    corners = torch.rand(count, BATCH, 4, 2, generator=draw) * SIDE / 2
    boxes = torch.cat([corners, corners + 12 + torch.rand(count, BATCH, 4, 2, generator=draw) * SIDE / 3], 3)
    labels = torch.randint(1, CLASSES + 1, (count, BATCH, 4), generator=draw)
    return [(images[i], [{"boxes": boxes[i, j], "labels": labels[i, j]} for j in range(BATCH)]) for i in range(count)]


def _bare(module: ObjectDetector, batches: Sequence[Batch]) -> None:
    optimizer = module.configure_optimizers()
    for images, targets in batches:
        losses = module.network.losses(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's, without types
        optimizer.step()


def _under_lightning(module: ObjectDetector, batches: Sequence[Batch]) -> Callable[[], None]:
    names = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    trainer = Trainer(accelerator="cpu", max_epochs=1, **dict.fromkeys(names, False))
    return partial(trainer.fit, module, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]  # a list will do
