"""The images on which an exported file is compared with its checkpoint, and the module that is compared."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_vision.datamodules.common.datamodule import VisionDataModule
from lightning_vision.images import list_images, normalise, read_image

__all__ = ["compared_images", "known_data"]

COMPARED = 16


def known_data(datamodule: Any, images: str | None) -> VisionDataModule | None:
    """The configured data, None where there are none or `images` are compared instead.

    Raises:
        ValueError: the data are a stranger's, whose images are not known as bytes.
    """
    if images is None and not isinstance(datamodule, VisionDataModule | None):
        kind = type(datamodule).__name__
        raise ValueError(
            f"{kind} is not of this package and cannot be compared on; name files to compare on by --images"
        )
    return datamodule if images is None else None


def compared_images(
    datamodule: VisionDataModule | None, told: Mapping[str, Any], images: str | None
) -> tuple[Tensor, Tensor, str]:
    """uint8 images `(B, C, H, W)`, the same as a network gets them, and where they come from.

    Args:
        datamodule: Gives its own, by its own way to the network, so that a wrong normalisation shows.
        told: The checkpoint's preprocessing.
        images: Image file or folder; without it and without data there is noise.

    Raises:
        ValueError: the data are of another size, or there are no images.
    """
    channels, size = told["channels"], tuple(told["image_size"])
    if datamodule is not None:
        pixels, prepared = (it[:COMPARED] for it in _first_batch(datamodule))
        source = f"{len(pixels)} images of {type(datamodule).__name__}"
        if pixels.shape[1:] != (channels, *size):
            raise ValueError(f"{source} are {tuple(pixels.shape[1:])}, the checkpoint's are {(channels, *size)}")
        return pixels, prepared, source
    if images is None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (COMPARED, channels, *size), dtype=torch.uint8, generator=generator)
        source = "noise, for there are neither --images nor data"
    else:
        found = list_images(images)[:COMPARED]
        if not found:
            raise ValueError(f"there are no images in {images}")
        pixels = torch.stack([read_image(path, channels, size, told["resize"]) for path in found])
        source = f"{len(found)} images of {images}"
    return pixels, normalise(pixels, told["mean"], told["std"]), source


def _first_batch(datamodule: VisionDataModule) -> tuple[Tensor, Tensor]:
    try:
        datamodule.prepare_data()
        datamodule.setup("predict")
        batch: Any = next(iter(datamodule.predict_dataloader()))
        prepared: Any = datamodule.on_after_batch_transfer(batch, 0)
    finally:
        datamodule.teardown("predict")
    return batch["image"], prepared["image"]
