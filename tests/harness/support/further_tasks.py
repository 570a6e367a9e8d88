"""Tiny modules of tasks beside `four_tasks.py`: those that keep values beside weights, or optimise by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lightning_vision.detection.detector import ObjectDetector
from lightning_vision.generation import DCGAN, VAE
from lightning_vision.self_supervised import DINO, MoCo, SimCLR

from .data import plain_loader
from .four_tasks import SGD, TASKS, Task
from .learners import tiny
from .shapes import shapes_loader

__all__ = ["ALL_TASKS"]

SMALL: dict[str, Any] = {"in_channels": 1, "image_size": 8, "channels": 4}


def _vae() -> Task:
    torch.manual_seed(0)
    return VAE(latent_dim=3, multiples=(1, 2), second_dim=8, optimizer=SGD, gamma_init=3.0, **SMALL), plain_loader(24)


def _gan() -> Task:
    torch.manual_seed(0)
    return DCGAN(latent_dim=4, num_classes=10, label_smoothing=0.2, **SMALL), plain_loader(24)


def _two_stages() -> Task:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 2, "image_size": 64, "pyramid_channels": 32}
    return ObjectDetector("faster_rcnn", "test_byobnet", optimizer=SGD, **sizes), shapes_loader(8, batch_size=2)


def _learner(kind: Callable[..., Any]) -> Task:
    return tiny(kind), plain_loader(24)


# By name; each makes a new module, of the same first weights every time.
ALL_TASKS: dict[str, Callable[[], Task]] = {
    **TASKS,
    "two stages": _two_stages,
    "VAE": _vae,
    "GAN": _gan,
    "SimCLR": partial(_learner, SimCLR),
    "MoCo": partial(_learner, MoCo),
    "DINO": partial(_learner, DINO),
}
