"""CIE L*a*b*: how light a pixel is, apart from its colour. Needs `pip install "lightning_vision[colour]"`."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

__all__ = ["from_lab", "require_kornia", "to_bytes", "to_lab"]


def to_lab(pixels: Tensor) -> Tensor:
    """L 0..100, and a and b, about -110..110, of sRGB pixels under daylight (D65).

    Args:
        pixels: `(B, 3, H, W)`, 0..1.

    Shape:
        `(B, 3, H, W)`, float32, or float64 as the pixels.

    Example:
        >>> [round(number) for number in to_lab(torch.ones(1, 3, 1, 1)).flatten().tolist()]
        [100, 0, 0]
    """
    wide = pixels if pixels.dtype == torch.float64 else pixels.float()
    with torch.autocast(pixels.device.type, enabled=False):
        found: Tensor = _color().rgb_to_lab(wide)
    return found


def from_lab(lab: Tensor) -> Tensor:
    """The sRGB pixels 0..1 of L, a and b; colours that no screen has are cut to 0..1, which changes their lightness.

    Args:
        lab: `(B, 3, H, W)`, as of `to_lab`.
    """
    with torch.autocast(lab.device.type, enabled=False):
        found: Tensor = _color().lab_to_rgb(lab, clip=True)
    return found


def to_bytes(lab: Tensor) -> Tensor:
    """The same as uint8 `(B, 3, H, W)`."""
    return from_lab(lab).mul(255).round().to(torch.uint8)


def require_kornia(owner: str) -> None:
    """Refuse to go on without kornia.

    Args:
        owner: Who needs it, for the error.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if importlib.util.find_spec("kornia") is None:
        raise ModuleNotFoundError(f'{owner} needs kornia; pip install "lightning_vision[colour]"')


def _color() -> Any:
    require_kornia("conversion to L*a*b*")
    # Importing it takes as long as importing torch.
    import kornia.color

    return kornia.color
