"""The numbers that augment training images: a function of (seed, epoch, sample)."""

import torch
from torch import Tensor

from ._draws import Stream, draw_uniform

__all__ = ["EpochUniforms", "uniforms"]

KEPT = 2**20


def uniforms(index: Tensor, draws: int, seed: int, epoch: int) -> Tensor:
    """Uniform random numbers in [0, 1) of the samples `index`, int64 `(B,)`: float32 `(B, draws)`, on its device."""
    counter = index[:, None] * draws + torch.arange(draws, device=index.device)
    return draw_uniform(counter, seed, epoch, Stream.AUGMENT)


class EpochUniforms:
    """`uniforms`, drawn for all samples at once where they are few.

    The dozen small operations of a draw cost as much for one batch as for 50,000 samples.
    """

    def __init__(self) -> None:
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def __call__(self, index: Tensor, draws: int, seed: int, epoch: int, samples: int) -> Tensor:
        """As `uniforms`; `samples` bounds the positions in `index`, 0 where nothing does."""
        if not 0 < samples * draws <= KEPT:
            return uniforms(index, draws, seed, epoch)
        key = index.device, draws, seed, epoch, samples
        if self._kept is None or self._kept[0] != key:
            self._kept = key, uniforms(torch.arange(samples, device=index.device), draws, seed, epoch)
        return self._kept[1][index]
