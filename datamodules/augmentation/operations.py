"""The operations of AutoAugment and its successors, each image with a magnitude of its own.

Cubuk et al. 2019, arXiv:1805.09501, Table 6. Images are uint8 `(B, C, H, W)`, C is 1 or 3, on any device and left
alone; `magnitude` is `(B,)`, float, on any device. Each equals torchvision's operation at that magnitude. What moves
pixels takes the nearest one or interpolates (`interpolation`, `nearest` or `bilinear`) and lets in `fill` from outside,
0..255, for all channels or a list of one a channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._affine import Fill, Interpolation, channel_values, move, moves, source_pixels
from ._luma import LUMA

__all__ = [
    "adjust_brightness",
    "adjust_color",
    "adjust_contrast",
    "adjust_sharpness",
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "rotate",
    "shear_x",
    "shear_y",
    "solarize",
    "translate_x",
    "translate_y",
]


def shear_x(images: Tensor, magnitude: Tensor, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Tensor:
    """Slide each row sideways, the more the lower it lies: by `magnitude` times its distance from the top."""
    return _moved("ShearX", images, magnitude, interpolation, fill)


def shear_y(images: Tensor, magnitude: Tensor, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Tensor:
    """Slide each column up or down, by `magnitude` times its distance from the left."""
    return _moved("ShearY", images, magnitude, interpolation, fill)


def translate_x(images: Tensor, magnitude: Tensor, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Tensor:
    """Move each image to the right by `magnitude` pixels, cut to a whole number."""
    return _moved("TranslateX", images, magnitude, interpolation, fill)


def translate_y(images: Tensor, magnitude: Tensor, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Tensor:
    """Move each image down by `magnitude` pixels, cut to a whole number."""
    return _moved("TranslateY", images, magnitude, interpolation, fill)


def rotate(images: Tensor, magnitude: Tensor, interpolation: Interpolation = "nearest", fill: Fill = 0) -> Tensor:
    """Turn each image about its centre, counter-clockwise by `magnitude` degrees."""
    return _moved("Rotate", images, magnitude, interpolation, fill)


def adjust_brightness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend each image with black: its values times 1 + `magnitude`."""
    return _uint8(images * _factor(images, magnitude).float())


def adjust_color(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend each image with its grey one: 1 + `magnitude` of it and -`magnitude` of the other."""
    if images.shape[1] == 1:
        return images.clone()
    return _blended(images, _grey(images), magnitude)


def adjust_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend each image with the mean of its grey one: 1 + `magnitude` of it and -`magnitude` of the other."""
    return _blended(images, _grey(images).mean((-3, -2, -1), keepdim=True), magnitude)


def adjust_sharpness(images: Tensor, magnitude: Tensor) -> Tensor:
    """Blend each image with a smoothed one: 1 + `magnitude` of it and -`magnitude` of the other.

    The smoothed one has (5 x + the 8 neighbours of x) / 13 for x, and x itself along the border.
    """
    if min(images.shape[-2:]) <= 2:
        return images.clone()
    wide = images.to(torch.int32)
    rows = wide[..., :-2, :] + wide[..., 1:-1, :] + wide[..., 2:, :]
    inner = wide[..., 1:-1, 1:-1]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    # Rounding: 2 * total is even and 13 (2 k + 1) odd, so total / 13 never lies halfway between two integers.
    smooth = (2 * total + 13) // 26
    result = images.clone()
    rest = (1.0 - _factor(images, magnitude)).float()
    result[..., 1:-1, 1:-1] = _uint8(_sum(inner, smooth - inner, rest))
    return result


def posterize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Keep the upper `magnitude` bits of each value, 0 to 8 of them, cut to a whole number."""
    dropped = 8 - magnitude.to(images.device).to(torch.int32)
    return images & ((255 << dropped) & 255).to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Invert the values that are at least 255 times `magnitude`."""
    bound = (255 * magnitude.to(images.device).double()).float()[:, None, None, None]
    return torch.where(images >= bound, images.bitwise_not(), images)


def auto_contrast(images: Tensor, magnitude: Tensor) -> Tensor:
    """Stretch the values of each channel over 0 to 255; a channel of one value stays. No magnitude."""
    wide = images.float()
    least, most = wide.amin((-2, -1), keepdim=True), wide.amax((-2, -1), keepdim=True)
    flat = least == most
    scale = torch.where(flat, 1.0, (most - least) * (1.0 / 255))
    return _uint8((wide - torch.where(flat, 0.0, least)) / scale)


def equalize(images: Tensor, magnitude: Tensor) -> Tensor:
    """Spread the values of each channel so that all are about equally frequent, as Pillow does. No magnitude."""
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    below = counts.cumsum(2)
    last = below.argmax(2, keepdim=True)
    step = (flat.shape[2] - counts.gather(2, last)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255).roll(1, 2)
    table[..., 0] = 0
    table = torch.where(step > 0, table, torch.arange(256, device=flat.device))
    return table.to(torch.uint8).gather(2, flat).view_as(images)


def invert(images: Tensor, magnitude: Tensor) -> Tensor:
    """255 less each value. No magnitude."""
    return images.bitwise_not()


def _identity(images: Tensor, magnitude: Tensor) -> Tensor:
    return images.clone()


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Identity": _identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": adjust_brightness,
    "Color": adjust_color,
    "Contrast": adjust_contrast,
    "Sharpness": adjust_sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
}
"""The operations by the names that policies have for them."""


def _factor(images: Tensor, magnitude: Tensor) -> Tensor:
    """1 + magnitude, float64 `(B, 1, 1, 1)`."""
    return 1.0 + magnitude.to(images.device).double()[:, None, None, None]


def _blended(images: Tensor, other: Tensor, magnitude: Tensor) -> Tensor:
    """1 + magnitude of the images and -magnitude of `other`, float32 `(B, 1, 1 or H, 1 or W)`."""
    factor = _factor(images, magnitude)
    return _uint8(_sum(images * factor.float(), other, (1.0 - factor).float()))


def _sum(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """one + share * other, rounded once, as a fused multiplication and addition of float32 on every device."""
    return (one.double() + other.double() * share.double()).float()


def _grey(images: Tensor) -> Tensor:
    """The grey image, cut to whole values: float32 `(B, 1, H, W)`."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.unbind(1)
    return red.mul(LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()[:, None]


def _uint8(values: Tensor) -> Tensor:
    """Values cut to 0..255 and to whole numbers; overwritten."""
    return values.clamp_(0, 255).to(torch.uint8)


def _moved(name: str, images: Tensor, magnitude: Tensor, interpolation: Interpolation, fill: Fill) -> Tensor:
    count, channels, height, width = images.shape
    values = channel_values(fill, channels)
    magnitudes = [it if moves(name, it) else 0.0 for it in magnitude.tolist()]
    if interpolation != "nearest":
        moved = [
            move(image, name, it, interpolation, values if any(values) else None) if it else image
            for image, it in zip(images, magnitudes, strict=True)
        ]
        return torch.stack(moved)
    distinct = sorted(set(magnitudes))
    maps = torch.stack([source_pixels(name, it, height, width) for it in distinct]).to(images.device)
    chosen = torch.tensor([distinct.index(it) for it in magnitudes], device=images.device)
    outside = torch.tensor(values, dtype=torch.uint8, device=images.device)[:, None].expand(count, channels, 1)
    padded = torch.cat([images.flatten(2), outside], 2)
    return padded.gather(2, maps[chosen][:, None].expand(-1, channels, -1)).view_as(images)
