"""The one decoder of image files and the one normalisation, shared by datamodules and by modules that predict."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = [
    "EXTENSIONS",
    "GREY",
    "BadImageError",
    "Fit",
    "FittedImage",
    "Resize",
    "convert_image",
    "fit_image",
    "list_images",
    "normalise",
    "open_image",
    "placement_of",
    "read_fitted",
    "read_image",
    "rescale",
    "scale_and_shift",
]

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings, in lower case, of the files that count as images."""

Resize = Literal["crop", "squash"]
Fit = Literal["letterbox", "squash"]
"""How the whole of an image becomes one of a given size: `letterbox` keeps its proportions and pads with grey."""

GREY = 114
"""Pixels around a letterboxed image; near the mean of photographs, so that the padding is near 0 once normalised."""


class BadImageError(ValueError):
    """An image file that cannot be decoded; the message names the file."""


def read_image(
    path: str | Path, channels: int = 3, image_size: tuple[int, int] | None = None, resize: Resize | Fit = "crop"
) -> Tensor:
    """Decode one file of any mode Pillow knows, turned as its EXIF orientation says; of several frames the first.

    Args:
        path: Image file.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width wanted, pixels; None keeps the file's own.
        resize: As in `convert_image`.

    Shape:
        uint8 `(channels, H, W)`, 0 to 255.

    Raises:
        FileNotFoundError: there is no such file.
        BadImageError: the file is not an image, is cut short or is damaged.
    """
    return convert_image(open_image(path), channels, image_size, resize)


def open_image(path: str | Path) -> Image.Image:
    """Decode one file into a Pillow image, as `read_image` does, of the mode and size it has."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImageError(f"cannot decode the image {path}: {reason.removesuffix(f' {str(path)!r}')}") from error


def convert_image(
    image: Image.Image, channels: int = 3, image_size: tuple[int, int] | None = None, resize: Resize | Fit = "crop"
) -> Tensor:
    """Turn a Pillow image into pixels: transparency onto white, 16 bits to 8, bilinear with antialiasing.

    Args:
        image: Of any mode; `F` counts as 0 to 255.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width wanted, pixels; None keeps the image's own.
        resize: `crop` keeps the aspect ratio and cuts what stands over on both sides, `squash` does not keep it,
            `letterbox` keeps it and pads what is missing on both sides with grey.

    Shape:
        uint8 `(channels, H, W)`, 0 to 255.

    Raises:
        ValueError: `channels` or `resize` is none of those.
    """
    if channels not in (1, 3) or resize not in ("crop", "squash", "letterbox"):
        raise ValueError(
            f"channels must be 1 or 3 and resize 'crop', 'squash' or 'letterbox', not {channels} and {resize!r}"
        )
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if image_size is not None and image.size != (size := (image_size[1], image_size[0])):
        if resize == "crop":
            image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        elif resize == "letterbox":
            across, down, right, below = _letterbox(image.size[::-1], image_size)
            whole, image = image, Image.new(mode, size, (GREY,) * channels if channels == 3 else GREY)
            image.paste(whole.resize((across, down), Image.Resampling.BILINEAR), (right, below))
        else:
            image = image.resize(size, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class FittedImage:
    """An image file as a detector takes it, and where its pixels went.

    Args:
        pixels: uint8 `(C, H, W)`, 0 to 255.
        placement: Scale across, scale down, shift right, shift down: a point x of the file lies at `x * scale + shift`,
            pixels, counted from the outer edge of the first one.
        size: Height and width of the file's image, upright, pixels.
    """

    pixels: Tensor
    placement: tuple[float, float, float, float]
    size: tuple[int, int]


def read_fitted(
    path: str | Path, channels: int = 3, image_size: tuple[int, int] | None = None, fit: Fit = "letterbox"
) -> FittedImage:
    """Decode the whole of one file into an image of a given size; errors are those of `read_image`.

    Args:
        path: Image file.
        channels: 1 (grey) or 3 (RGB).
        image_size: Height and width wanted, pixels; None keeps the file's own.
        fit: `letterbox` keeps the aspect ratio and pads both sides with grey, `squash` does not keep it.
    """
    return fit_image(open_image(path), channels, image_size, fit)


def fit_image(
    image: Image.Image, channels: int = 3, image_size: tuple[int, int] | None = None, fit: Fit = "letterbox"
) -> FittedImage:
    """As `read_fitted`, of a Pillow image."""
    size = image.height, image.width
    return FittedImage(
        convert_image(image, channels, image_size, fit), placement_of(size, image_size or size, fit), size
    )


def placement_of(
    size: tuple[int, int], image_size: tuple[int, int], fit: Fit = "letterbox"
) -> tuple[float, float, float, float]:
    """Where `fit_image` puts the points of an image: scale across, scale down, shift right, shift down.

    Args:
        size: Height and width of the image, pixels.
        image_size: Height and width that it is fitted into, pixels.
        fit: `letterbox` or `squash`.
    """
    height, width = size
    if fit == "squash":
        return image_size[1] / width, image_size[0] / height, 0.0, 0.0
    across, down, right, below = _letterbox(size, image_size)
    return across / width, down / height, float(right), float(below)


def _letterbox(size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Width and height to which an image is resized, and what is padded left of it and above, pixels."""
    height, width = size
    scale = min(image_size[0] / height, image_size[1] / width)
    across, down = (
        min(max(1, round(side * scale)), most) for side, most in ((width, image_size[1]), (height, image_size[0]))
    )
    return across, down, (image_size[1] - across) // 2, (image_size[0] - down) // 2


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """`(pixels / 255 - mean) / std` for uint8 `pixels` `(B, C, H, W)`, per channel, as float32."""
    return rescale(pixels, *scale_and_shift(mean, std, pixels.device))


def scale_and_shift(
    mean: Sequence[float], std: Sequence[float], device: torch.device, unit: int = 255
) -> tuple[Tensor, Tensor]:
    """What `rescale` multiplies by and what it subtracts, `(C, 1, 1)` each on `device`.

    Args:
        mean: Mean of each channel, for pixel values from 0 to 1.
        std: Standard deviation of each channel, for pixel values from 0 to 1.
        device: Where the images are.
        unit: The pixel value that means 1: 255 for bytes.
    """
    scale = torch.tensor([1 / (unit * value) for value in std], device=device)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=device)
    return scale.view(-1, 1, 1), shift.view(-1, 1, 1)


def rescale(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """`images * scale - shift` as float32 `(B, C, H, W)`; `scale` and `shift` are `(C, 1, 1)`."""
    return images.to(torch.float32, copy=True).mul_(scale).sub_(shift)


def list_images(folder: str | Path) -> list[str]:
    """Paths of all images below `folder`, sub-folders too, in an order that no file system changes.

    Hidden files and folders are left out, links to folders are followed, and a folder reached again is not read twice.
    A single file is its own list.

    Raises:
        FileNotFoundError: there is no such folder or file.
    """
    if os.path.isfile(folder):
        return [str(folder)]
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder}")
    found: list[Path] = []
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(parent)) in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
        found += [
            Path(parent, name) for name in files if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
        ]
    return [str(path) for path in sorted(found, key=lambda path: path.relative_to(folder).parts)]
