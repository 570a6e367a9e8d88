"""Drawing maps: over their images, or as pictures of their own, side by side with a line of text under each."""

from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from ..hooks._sheet import contact_sheet

__all__ = ["contact_sheet", "overlay", "signed_picture"]

Picture = NDArray[np.uint8]
# Of the colour map: both of its ends are nearly black, which on a dark image hides the map's maximum.
SHADES = (0.07, 0.87)


def overlay(image: Picture, heat: NDArray[Any], alpha: float = 0.5) -> Picture:
    """A heat map laid over its image, blue where it is 0 and red at its maximum; without colours if it is 0 everywhere.

    Args:
        image: `(H, W, 3)`, 0 to 255.
        heat: `(H, W)`, >= 0 (below counts as 0), divided by its maximum.
        alpha: Share of the colours, 0 shows the image alone, 1 the map alone.
    """
    heat = np.maximum(_finite(heat), 0)
    if not heat.any():
        return image.copy()
    low, high = SHADES
    colours = _coloured(low + (high - low) * heat / max(float(heat.max()), 1e-12), "turbo")
    return np.round((1 - alpha) * image + alpha * colours).astype(np.uint8)


def signed_picture(values: NDArray[Any]) -> Picture:
    """Signed contributions as colours: red for, blue against, white where there is none; `(H, W)` to `(H, W, 3)`.

    Full colour is the 99.5th percentile of the absolute values, so that a single pixel does not fade all others.
    """
    values = _finite(values)
    largest = max(float(np.percentile(np.abs(values), 99.5)), 1e-12)
    return _coloured(np.clip(values / largest, -1, 1) / 2 + 0.5, "bwr")


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    """In float32, with 0 for what is not finite, as of a network that diverged."""
    return np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0, neginf=0)


def _coloured(values: NDArray[Any], colours: str) -> Picture:
    picture: Picture = mpl.colormaps[colours](values, bytes=True)[..., :3]
    return picture
