"""What datamodule and module say about images and classes."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer

__all__ = ["Pixels", "class_names", "normalised_by"]

# Mean and standard deviation of each channel, of pixels in 0..1, with which images were normalised.
Pixels = tuple[list[float], list[float]]


def class_names(trainer: Trainer, pl_module: LightningModule) -> list[str] | None:
    """Names of the classes, from the datamodule, else from the module; None if neither has them."""
    data: Any = getattr(trainer, "datamodule", None)
    names = getattr(data, "class_names", None) or getattr(pl_module, "class_names", None)
    return None if names is None else [str(it) for it in names]


def normalised_by(trainer: Trainer) -> Pixels | None:
    """How the datamodule normalised images, if it says so."""
    data: Any = getattr(trainer, "datamodule", None)
    mean, std = getattr(data, "mean", None), getattr(data, "std", None)
    return None if mean is None or std is None else (list(mean), list(std))
