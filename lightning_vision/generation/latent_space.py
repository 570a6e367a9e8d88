"""The codes of a VAE, in which a diffusion model may work instead of on pixels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.base.hyperparameters import describe, is_description, rebuild
from lightning_vision.base.weights import module_from_checkpoint

__all__ = ["LatentSpace"]


class LatentSpace(nn.Module):
    """A VAE that is not trained, and the factor that brings its codes to unit size.

    Args:
        vae: Has `encode(image)`, of which the first answer is the mean of the code `(B, L, h, w)`, and `decode(code)`.
        scale: Of the codes; None is measured on the first batch of the training.
        description: What builds the VAE again, if it can be said in plain data.

    Raises:
        ValueError: the scale is not positive, or the module cannot encode and decode.

    Reference: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and, for the scale, appendix G
    """

    vae: Any

    def __init__(self, vae: nn.Module, scale: float | None = None, description: Any = None) -> None:
        super().__init__()
        if scale is not None and scale <= 0:
            raise ValueError(f"latent_scale is {scale}; give a number above 0, or None to measure it")
        if missing := [name for name in ("encode", "decode") if not callable(getattr(vae, name, None))]:
            raise ValueError(f"the {type(vae).__name__} given as latent_vae has no `{missing[0]}`; give a VAE")
        self.vae, self.description = vae.eval().requires_grad_(False), description
        # No buffer: an average of the weights would begin with it before it is measured.
        self.scale = scale
        told = getattr(vae, "preprocessing", None) or {}
        self.normalised = {name: list(told[name]) for name in ("mean", "std") if name in told}

    def get_extra_state(self) -> dict[str, float | None]:
        """The scale, for checkpoints: codes mean the same wherever one is loaded."""
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, float | None]) -> None:
        """Take the scale from a checkpoint."""
        self.scale = state["scale"]

    @classmethod
    def of(cls, vae: Any, scale: float | None) -> "LatentSpace":
        """From a checkpoint's path, a description, or a module.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            ValueError: it is none of a VAE.
        """
        if isinstance(vae, (str, Path)):
            found = module_from_checkpoint(vae)
            return cls(found, scale, {**describe(type(found)), "init_args": dict(found.hparams)})
        if is_description(vae):
            return cls(rebuild(vae, nn.Module)(), scale, vae)
        return cls(vae, scale)

    def train(self, mode: bool = True) -> "LatentSpace":
        """Stays in evaluation mode: it is not trained."""
        return super().train(False)

    def code_shape(self, channels: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Shape of the code of images of a size, `(L, h, w)`."""
        with torch.no_grad():
            mean = self.vae.encode(torch.zeros(1, channels, *size))[0]
        if mean.ndim != 4:
            raise ValueError(
                f"the VAE's code has the shape {tuple(mean.shape[1:])} and diffusion wants a map (L, h, w); train such "
                "a VAE"
            )
        _, latent, height, width = mean.shape
        return latent, height, width

    @torch.no_grad()
    def measure(self, image: Tensor, gathered: Callable[[Tensor], Any]) -> None:
        """Set the scale by the codes of images, once; `gathered` brings all processes' numbers together."""
        if self.scale is None:
            variance = self.vae.encode(image)[0].float().var()
            self.scale = float(gathered(variance).mean().rsqrt())

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """Scaled codes `(B, L, h, w)`: the means, without the VAE's noise."""
        code: Tensor = self.vae.encode(image)[0]
        return code if self.scale is None else code * self.scale

    @torch.no_grad()
    def decode(self, code: Tensor) -> Tensor:
        """Images of scaled codes."""
        image: Tensor = self.vae.decode(code if self.scale is None else code / self.scale)
        return image
