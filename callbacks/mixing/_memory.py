"""Memory for mixed batches on the CPU, where writing the first byte of a page costs more than mixing what is on it."""

import numpy as np
import torch
from torch import Tensor

__all__ = ["dense", "fresh_like"]


def dense(images: Tensor) -> Tensor:
    """`images`, copied only if their samples do not lie one after the other without gaps (channels first or last)."""
    if images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last):
        return images
    return images.contiguous()


def fresh_like(images: Tensor) -> Tensor:
    """Uninitialised CPU tensor with shape, dtype and strides of `images`, which are dense."""
    # numpy asks Linux for pages of 2 MB, torch does not: 74 page faults, not 37,632, for 256 images of 3x224x224.
    memory = torch.from_numpy(np.empty(images.numel() * images.element_size(), dtype=np.uint8))
    return memory.view(images.dtype).as_strided(images.shape, images.stride())
