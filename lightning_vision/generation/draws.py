"""Random numbers of images, which follow from a seed and each image's own number and from nothing else."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Standard normal numbers for a batch of images, each image's from a stream of its own.

    The numbers are drawn on the CPU, so that they are the same whatever the device, the batch size and the number of
    processes.

    Args:
        seed: Of all images, at least 0.
        numbers: Of the images of this batch, each at least 0.

    Example:
        >>> bool((Draws(0, [7]).normal(2, 3) == Draws(0, [5, 7]).normal(2, 3)[1:]).all())
        True
    """

    def __init__(self, seed: int, numbers: Sequence[int]) -> None:
        # numpy's: torch's on the CPU know no more than 2^32 seeds, so that of a million images a hundred were alike.
        self._streams = [
            np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(int(number),))))
            for number in numbers
        ]

    def normal(self, *shape: int) -> Tensor:
        """Fresh numbers `(B, *shape)`, float32."""
        if not self._streams:
            return torch.zeros(0, *shape)
        drawn = [stream.standard_normal(shape, dtype=np.float32) for stream in self._streams]
        return torch.from_numpy(np.stack(drawn))

    def like(self, x: Tensor) -> Tensor:
        """Fresh numbers of the shape, kind and device of x `(B, ...)`."""
        return self.normal(*x.shape[1:]).to(x)
