"""Geometry of augmentations: which pixel of an image each pixel of the result is taken from."""

import math
from collections import OrderedDict
from typing import Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

__all__ = ["GEOMETRIC", "Fill", "Interpolation", "channel_values", "check_outside", "move", "moves", "source_pixels"]

Fill = int | list[int]
Interpolation = Literal["nearest", "bilinear"]
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

# Policies have few magnitudes, so the same maps come again and again; 128 MiB are 334 maps of 224 x 224 pixels.
_BYTES = 2**27


def check_outside(name: str, interpolation: str, fill: object) -> None:
    """Refuse settings of the operations that move pixels.

    Raises:
        ValueError: an unknown interpolation; a fill that is no value 0..255, nor a list of 1 or 3.
    """
    if interpolation not in get_args(Interpolation):
        known = " or ".join(get_args(Interpolation))
        raise ValueError(f"{name}: interpolation is {interpolation!r}; give {known}.")
    values = fill if isinstance(fill, list) and len(fill) in (1, 3) else [fill]
    if any(type(value) is not int or not 0 <= value <= 255 for value in values):
        raise ValueError(f"{name}: fill is {fill!r}; give a whole number from 0 to 255, or a list of one a channel.")


def channel_values(fill: Fill, channels: int) -> list[int]:
    """What is let in from outside, a value a channel.

    Raises:
        ValueError: values for another number of channels.
    """
    if isinstance(fill, int):
        return [fill] * channels
    if len(fill) != channels:
        raise ValueError(f"fill has {len(fill)} values and the images {channels} channels; give one value for all.")
    return fill


def moves(name: str, magnitude: float) -> bool:
    """Whether the operation leaves any pixel where another stood before."""
    return (int(magnitude) if name.startswith("Translate") else magnitude) != 0


def move(image: Tensor, name: str, magnitude: float, interpolation: Interpolation, fill: list[int] | None) -> Tensor:
    """One image or a batch `(..., C, H, W)` moved by torchvision.

    Args:
        image: uint8 or float32.
        name: One of `GEOMETRIC`.
        magnitude: A share of the other side for a shear, pixels for a translation, degrees for a rotation.
        interpolation: `nearest` or `bilinear`.
        fill: A value a channel for what comes from outside; None is 0.
    """
    mode = InterpolationMode(interpolation)
    if name == "Rotate":
        return F.rotate(image, angle=magnitude, interpolation=mode, fill=fill)
    shear, translate, center = [0.0, 0.0], [0, 0], None
    axis = 0 if name.endswith("X") else 1
    if name.startswith("Shear"):
        shear[axis], center = math.degrees(math.atan(magnitude)), [0, 0]
    else:
        translate[axis] = int(magnitude)
    return F.affine(
        image, angle=0.0, translate=translate, scale=1.0, shear=shear, interpolation=mode, fill=fill, center=center
    )


def source_pixels(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """For each pixel of the result, row by row, the number of the pixel it is taken from: int64 `(H * W,)`.

    Pixels are numbered row by row; H * W is "from outside". torchvision moves an image of rows and columns, so that a
    place halfway between two pixels, where the last bit of a float decides, is given to the same one.
    """
    return _maps.get((name, magnitude, height, width))


class _Maps:
    """The maps that were asked for last, as many as `_BYTES` hold."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, float, int, int], Tensor] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[str, float, int, int]) -> Tensor:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        made = self._held[key] = _made(*key)
        self._bytes += made.nbytes
        while self._bytes > _BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return made


_maps = _Maps()


def _made(name: str, magnitude: float, height: int, width: int) -> Tensor:
    rows = torch.arange(1, height + 1, dtype=torch.float32)[:, None].expand(height, width)
    columns = torch.arange(1, width + 1, dtype=torch.float32).expand(height, width)
    row, column = move(torch.stack([rows, columns]), name, magnitude, "nearest", None).long() - 1
    return torch.where(row < 0, height * width, row * width + column).flatten()
