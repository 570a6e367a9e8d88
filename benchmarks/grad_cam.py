"""What Grad-CAM costs: maps of 64 images beside the grad-cam package's, and what a logger of them adds to an epoch."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from pytorch_grad_cam import GradCAM
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_vision.backbones import create
from lightning_vision.callbacks import GradCAMLogger, grad_cam

from .fits import Plain
from .maps import beside_the_package
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

EPOCHS = 3  # of a fit of one small step each, so that what is done once a fit counts for a third


class Validated(Plain):
    """A network of timm's or ours whose validation takes the loss."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        super().__init__(create(name, num_classes=10, in_channels=3))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image)
        return logits

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def rows(quick: bool) -> list[Row]:
    """Maps of 64 images at three sizes; epochs that validate four batches of 64, with and without the logger.

    Args:
        quick: One repetition of few images.
    """
    images, repetitions = (4, (1, 0)) if quick else (64, (11, 1))
    found = [
        beside_the_package("`grad_cam`", grad_cam, GradCAM, quick, size=size, repetitions=times)
        for size, times in ((64, 9), (128, 9), (224, 3))
    ]
    with TemporaryDirectory() as folder:
        return [*found, *(_logged(name, images, folder, *repetitions) for name in ("resnet18", "resnet8_cifar"))]


def _logged(name: str, size: int, folder: str, repetitions: int, warmup: int) -> Row:
    """What the logger adds to a validation, in batches of that validation."""
    side = {"resnet18": 64, "resnet8_cifar": 32}[name]
    generator = torch.Generator().manual_seed(0)
    count = 4
    images = torch.randn(count, size, 3, side, side, generator=generator)
    batches = list(zip(images, torch.randint(10, (count, size), generator=generator), strict=True))
    sides = {"plain": _fitting(name, batches, folder), "logged": _fitting(name, batches, folder, GradCAMLogger())}
    sides["one"] = _fitting(name, batches[:1], folder)
    times = {key: clocks["cpu"] for key, clocks in take_turns(sides, repetitions, warmup).items()}
    plain, logged, one = (times[key] for key in ("plain", "logged", "one"))
    batch = [(a - b) / (count - 1) / EPOCHS for a, b in zip(plain, one, strict=True)]
    added = [(a - b) / EPOCHS for a, b in zip(logged, plain, strict=True)]
    what = f"what a sheet of 8 adds to an epoch's validation, `{name}` at {side} pixels"
    return Row.slowdown(what, f"a batch of {size} of that validation", added, batch, "cpu", "<= 1.00")


def _fitting(name: str, batches: list[tuple[Tensor, Tensor]], folder: str, *callbacks: Callback) -> Side:
    def prepare() -> Callable[[], Any]:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=EPOCHS,
            num_sanity_val_steps=0,
            callbacks=copy.deepcopy(list(callbacks)),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=Path(folder),
        )
        module = Validated(name)
        few = [(images[:2], targets[:2]) for images, targets in batches[:1]]
        loaders: Any = [DataLoader(it, batch_size=None) for it in (few, batches)]  # type: ignore[arg-type]  # lists do
        return lambda: trainer.fit(module, *loaders)

    return prepare
