"""One tiny module of each kind of task, with a loader of a few batches of what it learns from."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_vision import ImageClassifier
from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.self_supervised import BYOL

from .data import plain_loader
from .generators import tiny_diffusion
from .learners import tiny
from .shapes import shapes_loader

__all__ = ["TASKS"]

SGD = partial(torch.optim.SGD, lr=0.05)
Task = tuple[LightningModule, DataLoader[Any]]


def _classification() -> Task:
    torch.manual_seed(0)
    return ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1, optimizer=SGD), plain_loader(24)


def _detection() -> Task:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 2, "image_size": 64, "strides": [8], "pyramid_channels": 32}
    return ObjectDetector("fcos", "test_byobnet", optimizer=SGD, **sizes), shapes_loader(8, batch_size=2)


def _generation() -> Task:
    return tiny_diffusion(num_classes=None), plain_loader(24)


def _self_supervised() -> Task:
    return tiny(BYOL), plain_loader(24)


# By name; each makes a new module, of the same first weights every time.
TASKS: dict[str, Callable[[], Task]] = {
    "classification": _classification,
    "detection": _detection,
    "generation": _generation,
    "self-supervised": _self_supervised,
}
