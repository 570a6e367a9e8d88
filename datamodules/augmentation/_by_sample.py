"""The operations on one image on the CPU, with as few passes over its pixels as they allow.

Each equals its namesake in `operations.py`, where it is explained.
"""

from collections.abc import Callable
from math import ceil

import numpy as np
import torch

from ._affine import GEOMETRIC, Interpolation, move, moves, source_pixels
from ._lookup import Bytes, Lookup
from ._luma import LUMA

__all__ = ["take_steps"]


def take_steps(image: Bytes, plan: list[tuple[str, float]], interpolation: Interpolation, fill: list[int]) -> Bytes:
    """The image after its steps; the image itself where there are none.

    Args:
        image: `(C, H, W)`, contiguous; left alone.
        plan: Names of operations and magnitudes.
        interpolation: `nearest` or `bilinear`.
        fill: A value a channel for what comes from outside.
    """
    state = Lookup(image)
    for name, magnitude in plan:
        if name == "Equalize":
            state.equalize()
        elif name == "AutoContrast":
            state.stretch()
        elif name in SINGLE and state.table is not None:
            state.table = SINGLE[name](state.table, magnitude)
        elif name in SINGLE:
            state.replace(SINGLE[name](state.image, magnitude))
        elif name in GEOMETRIC:
            state.replace(_moved(state.pixels(), name, magnitude, interpolation, fill))
        elif name != "Identity":
            state.replace(WHOLE[name](state.pixels(), magnitude))
    return state.pixels()


def _brightness(values: Bytes, magnitude: float) -> Bytes:
    return _bytes(torch.from_numpy(values) * (1.0 + magnitude))


def _posterize(values: Bytes, magnitude: float) -> Bytes:
    return values & np.uint8((255 << (8 - int(magnitude))) & 255)


def _solarize(values: Bytes, magnitude: float) -> Bytes:
    # Inverted where 255 is added in each bit, which -1 is.
    return values ^ -(values >= ceil(np.float32(255 * magnitude))).view(np.uint8)


def _invert(values: Bytes, magnitude: float) -> Bytes:
    return ~values


def _color(image: Bytes, magnitude: float) -> Bytes:
    if len(image) == 1:
        return image
    wide = torch.from_numpy(image).float()
    return _blend(wide, _grey(wide), 1.0 + magnitude)


def _contrast(image: Bytes, magnitude: float) -> Bytes:
    wide = torch.from_numpy(image).float()
    return _blend(wide, _grey(wide).mean((-3, -2, -1), keepdim=True), 1.0 + magnitude)


def _sharpness(image: Bytes, magnitude: float) -> Bytes:
    if min(image.shape[1:]) <= 2:
        return image
    wide = image.astype(np.int16)
    inner = wide[:, 1:-1, 1:-1]
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    # total / 13 never lies halfway between two integers, so no rounding error can carry it across.
    away = np.rint(total * np.float32(1 / 13)) - inner
    result = image.copy()
    blended = torch.from_numpy(inner.astype(np.float32)).add_(torch.from_numpy(away), alpha=1.0 - (1.0 + magnitude))
    result[:, 1:-1, 1:-1] = _bytes(blended)
    return result


def _moved(image: Bytes, name: str, magnitude: float, interpolation: Interpolation, fill: list[int]) -> Bytes:
    if not moves(name, magnitude):
        return image
    channels, height, width = image.shape
    outside = np.array(fill, np.uint8)
    if name.startswith("Translate"):
        result = np.empty_like(image)
        result[:] = outside[:, None, None]
        across = int(np.clip(magnitude, -width, width)) if name == "TranslateX" else 0
        down = int(np.clip(magnitude, -height, height)) if name == "TranslateY" else 0
        result[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)] = image[
            :, max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)
        ]
        return result
    if interpolation != "nearest":
        return move(torch.from_numpy(image), name, magnitude, interpolation, fill if any(fill) else None).numpy()
    padded = np.empty((channels, height * width + 1), np.uint8)
    padded[:, :-1] = image.reshape(channels, -1)
    padded[:, -1] = outside
    # No index is outside; this mode spares the check for it.
    pixels = source_pixels(name, magnitude, height, width).numpy()
    return np.take(padded, pixels, axis=1, mode="clip").reshape(image.shape)


# Operations on single values, which may be pixels or a table's.
SINGLE: dict[str, Callable[[Bytes, float], Bytes]] = {
    "Brightness": _brightness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "Invert": _invert,
}
WHOLE: dict[str, Callable[[Bytes, float], Bytes]] = {"Color": _color, "Contrast": _contrast, "Sharpness": _sharpness}


def _grey(wide: torch.Tensor) -> torch.Tensor:
    if len(wide) == 1:
        return wide
    return wide[:1].mul(LUMA[0]).add_(wide[1:2], alpha=LUMA[1]).add_(wide[2:], alpha=LUMA[2]).floor_()


def _blend(wide: torch.Tensor, other: torch.Tensor, factor: float) -> Bytes:
    return _bytes(wide.mul_(factor).add_(other, alpha=1.0 - factor))


def _bytes(values: torch.Tensor) -> Bytes:
    # numpy's cast is six times as fast as torch's.
    return values.clamp_(0, 255).numpy().astype(np.uint8)
