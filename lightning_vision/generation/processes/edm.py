"""EDM: a denoiser at any level of noise, of whose input and output a network sees no more than unit size.

Letters: B images `(B, C, H, W)`, sigma the standard deviation of the noise that is added.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..samplers.ode import euler, heun
from .edit import Edit
from .gaussian import along
from .process import Network, Process

__all__ = ["EDM"]


@dataclass(frozen=True)
class EDM(Process):
    """x = data + sigma noise, and D(x) = c_skip x + c_out F(c_in x, ln(sigma) / 4) with a network F (equation 7).

    The factors are such that F's input and target have variance 1 at each sigma, and errors of its output are magnified
    least (table 1).

    Args:
        data_std: Standard deviation of the images' numbers, above 0.
        location: Mean of ln(sigma) in training.
        scale: Its standard deviation, above 0.
        sigma_min: Lowest level in sampling, above 0.
        sigma_max: Highest, above `sigma_min`.
        rho: How much denser the levels are where sigma is small, above 0.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> images = torch.randn(4, 1, 8, 8)
        >>> loss = EDM().loss(lambda x, t, y: -x, images, torch.randn_like(images), torch.rand(4))

    Reference: Karras et al. 2022, arXiv:2206.00364

    BibTeX:
        @inproceedings{karras2022elucidating,
          title = {Elucidating the Design Space of Diffusion-Based Generative Models},
          author = {Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2022},
          eprint = {2206.00364},
          archivePrefix = {arXiv},
        }
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {
        # The velocity is not defined at sigma 0.
        "heun": partial(heun, last_euler=True),
        "euler": euler,
    }

    data_std: float = 0.5
    location: float = -1.2
    scale: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for name in ("data_std", "scale", "sigma_min", "rho"):
            if getattr(self, name) <= 0:
                raise ValueError(f"EDM: {name} is {getattr(self, name)}; give a number above 0")
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"EDM: sigma_max is {self.sigma_max}; give more than sigma_min={self.sigma_min}")

    def denoised(self, network: Network, x: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """D(x): the image that x `(B, C, H, W)` with noise of sigma `(B,)` is expected to be."""
        level, own = along(sigma, x), self.data_std**2
        whole = level.square() + own
        output = network(x / whole.sqrt(), sigma.log() / 4, label)
        return own / whole * x + level * self.data_std / whole.sqrt() * output

    def loss(self, network: Network, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """The squared error of D, F's counting alike at each level (equation 8); F is told ln(sigma) / 4."""
        # Half precision would round 1 - 1e-6 to 1.
        wide = uniform.to(torch.promote_types(data.dtype, torch.float32))
        normal = torch.special.ndtri(wide.clamp(1e-6, 1 - 1e-6))
        sigma = (self.location + self.scale * normal).exp().to(data)
        weight = along((sigma.square() + self.data_std**2) / (sigma * self.data_std).square(), data)
        denoised = self.denoised(network, data + along(sigma, data) * noise, sigma, label)
        return (weight * (denoised - data).square()).mean()

    def times(self, steps: int, strength: float = 1.0) -> Tensor:
        """Levels between which a solver steps, `(steps + 1,)`: from `sigma_max` to `sigma_min`, then 0 (equation 5).

        With a `strength` below 1 they begin at that share of the way.
        """
        root = 1 / self.rho
        share = torch.linspace(1 - strength, 1, steps, dtype=torch.float64)
        levels = (self.sigma_max**root + share * (self.sigma_min**root - self.sigma_max**root)) ** self.rho
        return torch.cat([levels, levels.new_zeros(1)]).float()

    def velocity(
        self, network: Network, label: Any = None, edit: Edit | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """dx/dsigma = (x - D(x)) / sigma, which solvers follow down from `sigma_max` (equation 3, sigma(t) = t)."""

        def slope(x: Tensor, sigma: Tensor) -> Tensor:
            data = self.denoised(network, x, sigma, label)
            return (x - (data if edit is None else edit.kept(data))) / along(sigma, x)

        return slope

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Network,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        times = self.times(steps, edit.strength if edit else 1.0).to(noise)
        start = times[0] * noise if edit is None or edit.strength == 1 else edit.image + times[0] * noise
        return sampler(self.velocity(network, label, edit), start, times)
