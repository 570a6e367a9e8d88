"""The parameter-free shortcut that residual networks for small images use where width grows."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_channels"]


def pad_channels(x: Tensor, channels: int) -> Tensor:
    """Append channels of zeros, so that the first ones pass unchanged.

    This is shortcut A of the residual networks: the identity on the channels that exist, zero on the new ones.

    Args:
        x: Feature map `(B, C, H, W)`.
        channels: Channels of the result, at least C.

    Returns:
        `(B, channels, H, W)`; `x` itself when nothing is to be added.

    Raises:
        ValueError: `channels` is smaller than C.

    Reference: He et al. 2015, arXiv:1512.03385
    """
    if channels < x.shape[1]:
        raise ValueError(f"pad_channels only adds channels: got {x.shape[1]}, asked for {channels}")
    return x if channels == x.shape[1] else F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
