"""NCSN: a network learns the gradient of the log-density of images to which noise of several levels was added.

Letters: B images `(B, C, H, W)`; sigma_1 > ... > sigma_L the levels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..samplers.langevin import annealed_langevin
from .edit import Edit
from .gaussian import along
from .process import Network, Process

__all__ = ["NCSN"]


@dataclass(frozen=True)
class NCSN(Process):
    """Denoising score matching at geometric levels of noise (equations 5 and 6), weighted by sigma^2.

    Args:
        sigma_begin: The highest level, of the order of the distance between images.
        sigma_end: The lowest, above 0.
        levels: L, at least 2.
        scaled: Whether the score is the network's answer over sigma, which is then of one size at all levels (Song and
            Ermon 2020, arXiv:2006.09011, technique 3), or the answer itself, as in the paper.

    Raises:
        ValueError: a setting is out of its range.

    Example:
        >>> images = torch.rand(4, 1, 8, 8)
        >>> loss = NCSN().loss(lambda x, t, y: -x, images, torch.randn_like(images), torch.rand(4))

    Reference: Song and Ermon 2019, arXiv:1907.05600

    BibTeX:
        @inproceedings{song2019generative,
          title = {Generative Modeling by Estimating Gradients of the Data Distribution},
          author = {Song, Yang and Ermon, Stefano},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2019},
          eprint = {1907.05600},
          archivePrefix = {arXiv},
        }
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"langevin": annealed_langevin}

    sigma_begin: float = 1.0
    sigma_end: float = 0.01
    levels: int = 10
    scaled: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.sigma_end < self.sigma_begin:
            raise ValueError(
                f"NCSN: noise falls from sigma_begin={self.sigma_begin} to sigma_end={self.sigma_end}; give two "
                "numbers above 0, the first the larger"
            )
        if self.levels < 2:
            raise ValueError(f"NCSN: levels is {self.levels}; give at least 2")

    @property
    def sigmas(self) -> Tensor:
        """All levels, `(L,)`, each the same share of the one before."""
        share = self.sigma_end / self.sigma_begin
        return (self.sigma_begin * share ** torch.linspace(0, 1, self.levels, dtype=torch.float64)).float()

    def loss(self, network: Network, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """Half of sigma^2 |s(x + sigma z) + z / sigma|^2 of a pixel; the time is the number of the level over L."""
        level = (uniform * self.levels).long().clamp_max(self.levels - 1)
        sigma = along(self.sigmas.to(level.device)[level].to(data), data)
        answer = network(data + sigma * noise, (level / self.levels).to(data), label)
        return ((answer if self.scaled else sigma * answer) + noise).square().mean() / 2

    def score(self, network: Network, label: Any = None) -> Callable[[Tensor, int], Tensor]:
        """What annealed Langevin dynamics asks: the score of x at the number of a level."""

        def gradient(x: Tensor, level: int) -> Tensor:
            answer = network(x, torch.full((len(x),), level / self.levels, device=x.device, dtype=x.dtype), label)
            return answer / self.sigmas[level].to(x) if self.scaled else answer

        return gradient

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Network,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        """As `Process`; `steps` are those of each level."""
        first = 0 if edit is None else min(self.levels - 1, round((1 - edit.strength) * self.levels))
        sigmas, score = self.sigmas.to(noise)[first:], self.score(network, label)
        start = sigmas[0] * noise if edit is None or edit.strength == 1 else edit.image + sigmas[0] * noise
        known = {} if edit is None or edit.mask is None else {"known": edit.image, "mask": edit.mask}
        return sampler(lambda x, level: score(x, first + level), start, sigmas, steps=steps, **known)
