"""What datamodule and module say about images and classes."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

__all__ = ["Pixels", "class_names", "normalised_by"]

# Mean and standard deviation of each channel, of pixels in 0..1, with which images were normalised.
Pixels = tuple[list[float], list[float]]


def class_names(trainer: Trainer, pl_module: LightningModule) -> list[str] | None:
    """Names of the classes, from the datamodule, else from the module; None if neither has them."""
    data: Any = getattr(trainer, "datamodule", None)
    names = getattr(data, "class_names", None) or getattr(pl_module, "class_names", None)
    # Of strangers it may be anything of that name, a method for example.
    return [str(it) for it in names] if isinstance(names, (list, tuple)) else None


def normalised_by(trainer: Trainer) -> Pixels | None:
    """How the datamodule normalised images, if it says so."""
    data: Any = getattr(trainer, "datamodule", None)
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    try:
        return _numbers(mean), _numbers(std)
    except (TypeError, ValueError, RuntimeError):
        return None


def _numbers(value: Any) -> list[float]:
    """A list, a tensor `(C, 1, 1)` or one number as a list."""
    return [float(it) for it in torch.as_tensor(value).flatten()]
