"""Sampling that goes on from an image, or around pixels that are known."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Edit"]


@dataclass(frozen=True)
class Edit:
    """An image that sampling starts from (image to image), or whose pixels it keeps (inpainting).

    Samplers ask for estimates of the image behind the noise. Of known pixels the estimate is what they are, so any
    sampler leads them there, and the rest is made to fit: better by samplers that draw fresh noise (`ddpm`, `ddim` with
    `eta: 1.0`, `langevin`), for a solver carries the first noise of known pixels along and sees less of them.

    Args:
        image: `(B, C, H, W)`, normalised as the training's.
        mask: bool, broadcasts to the image, True where it is kept; None keeps nothing.
        strength: Share of the way to noise that sampling starts at, above 0 and at most 1: less keeps more of the
            image; 1 starts at noise.

    Raises:
        ValueError: `strength` is out of its range, or the mask is not bool or of another size.

    Reference: Meng et al. 2022, arXiv:2108.01073; replacing known pixels: Song et al. 2021, arXiv:2011.13456
    """

    image: Tensor
    mask: Tensor | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; give a share of the way to noise, above 0 and at most 1")
        if self.mask is None:
            return
        if self.mask.dtype != torch.bool:
            raise ValueError(f"the mask has numbers of {self.mask.dtype}; give bool, True where pixels are kept")
        try:
            torch.broadcast_shapes(self.mask.shape, self.image.shape)
        except RuntimeError as error:
            shapes = f"{tuple(self.mask.shape)} and the images {tuple(self.image.shape)}"
            raise ValueError(f"the mask has the shape {shapes}; give one that fits") from error

    def kept(self, estimate: Tensor) -> Tensor:
        """The estimate with known pixels in place."""
        return estimate if self.mask is None else torch.where(self.mask, self.image, estimate)
