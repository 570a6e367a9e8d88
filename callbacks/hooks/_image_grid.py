"""Many images on one picture."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["image_grid"]

SIDE = 48  # pixels to about which small images are enlarged


def image_grid(pixels: Tensor, columns: int) -> NDArray[np.uint8]:
    """Images uint8 `(N, 1 or 3, H, W)` row by row with white lines between, small ones enlarged, as `(H', W', 3)`."""
    # Here, for torchvision takes a while to import.
    from torchvision.utils import make_grid

    factor = max(1, round(SIDE / max(pixels.shape[2:])))
    large = pixels.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3).expand(-1, 3, -1, -1)
    grid: Tensor = make_grid(large, nrow=columns, padding=2, pad_value=255)
    return grid.permute(1, 2, 0).contiguous().numpy()
