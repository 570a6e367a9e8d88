"""What datamodule and module say about images and classes."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

__all__ = ["Pixels", "as_pixels", "class_names", "normalised_by"]

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


def as_pixels(images: Tensor, normalised: Pixels | None) -> Tensor:
    """Images `(B, C, H, W)` as uint8 of three channels or one; bytes are pixels already.

    Of one or two channels the first counts, of more than three the first three. Where nobody told how they were
    normalised, or it does not fit, each image is stretched from its least to its largest value.
    """
    channels = images.shape[1]
    pixels = images.float()
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    elif normalised is not None and all(len(it) in (1, channels) for it in normalised):
        # The dtype is named, for with bf16-true the default one is bfloat16.
        mean, std = (torch.tensor(it, dtype=torch.float32, device=images.device)[:, None, None] for it in normalised)
        pixels = pixels * std + mean
    else:
        low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    return (pixels[:, : 3 if channels >= 3 else 1] * 255).round().clamp(0, 255).to(torch.uint8)


def _numbers(value: Any) -> list[float]:
    """A list, a tensor `(C, 1, 1)` or one number as a list."""
    return [float(it) for it in torch.as_tensor(value).flatten()]
