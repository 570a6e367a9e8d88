"""Denoising diffusion: T steps add noise to an image, and a network learns to tell it at any of them.

Letters: B images `(B, C, H, W)`; t a step, 0 .. T - 1; a_t the share of the image's variance that is left after it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..samplers.gaussian import ddim, ddpm, dpm_solver_2m
from .edit import Edit
from .gaussian import Prediction, along, data_and_noise, target_of
from .process import Network, Process

__all__ = ["Diffusion", "shares_left"]

Schedule = Literal["linear", "cosine"]
PREDICTIONS = ("noise", "data", "v")


def shares_left(schedule: Schedule, steps: int) -> Tensor:
    """a_t of all steps, float64 `(T,)`, falling.

    `linear`: the variance added rises from 0.0001 to 0.02 as in a thousand steps, more where there are fewer (Ho et
    al. 2020); `cosine`: a_t is the squared cosine of a time that is never quite the end (Nichol and Dhariwal 2021,
    arXiv:2102.09672, equation 17), no step adding more than 0.999.
    """
    if schedule == "linear":
        factor = 1000 / steps
        return (1 - torch.linspace(1e-4 * factor, min(0.02 * factor, 0.999), steps, dtype=torch.float64)).cumprod(0)
    angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008 * math.pi / 2
    whole = angle.cos().square()
    return (whole[1:] / whole[:-1]).clamp_min(1e-3).cumprod(0)


@dataclass(frozen=True)
class Diffusion(Process):
    """x_t = sqrt(a_t) data + sqrt(1 - a_t) noise, of which a network predicts one (equation 4).

    Args:
        schedule: `linear` or `cosine`, see `shares_left`.
        steps: T.
        prediction: `noise`, as the authors have it; `data`; or `v`, which stays of one size at both ends.
        clip: In sampling, cut estimates of the image to -clip..clip; where nearly all is noise an estimate is a small
            difference of large numbers. None, neutral, cuts nothing; the authors' is 1 for images of -1..1.

    Raises:
        ValueError: a setting is unknown or out of its range.

    Example:
        >>> images = torch.rand(4, 1, 8, 8)
        >>> loss = Diffusion().loss(lambda x, t, y: x, images, torch.randn_like(images), torch.rand(4))

    Reference: Ho et al. 2020, arXiv:2006.11239

    BibTeX:
        @inproceedings{ho2020denoising,
          title = {Denoising Diffusion Probabilistic Models},
          author = {Ho, Jonathan and Jain, Ajay and Abbeel, Pieter},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2020},
          eprint = {2006.11239},
          archivePrefix = {arXiv},
        }
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {
        "ddim": ddim,
        "ddpm": ddpm,
        "dpm_solver_2m": dpm_solver_2m,
    }

    schedule: Schedule = "linear"
    steps: int = 1000
    prediction: Prediction = "noise"
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"Diffusion: schedule is {self.schedule!r}; give 'linear' or 'cosine'")
        if self.steps < 2:
            raise ValueError(f"Diffusion: steps is {self.steps}; give at least 2")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"Diffusion: prediction is {self.prediction!r}; give one of {', '.join(PREDICTIONS)}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"Diffusion: clip is {self.clip}; give a number above 0, or None")

    @cached_property
    def shares(self) -> Tensor:
        """a_t of all steps, float64 `(T,)` on the CPU."""
        return shares_left(self.schedule, self.steps)

    def alpha_and_sigma(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of data and noise, float64 `(B,)` on the CPU, at steps int64 `(B,)`; at -1, before all, 1, 0."""
        # Some accelerators have no float64.
        shares = torch.cat([self.shares.new_ones(1), self.shares])[step.cpu() + 1]
        return shares.sqrt(), (1 - shares).sqrt()

    def loss(self, network: Network, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """The mean squared error of what is predicted, at steps all as likely (equation 14); the time is t / T."""
        step = (uniform * self.steps).long().clamp_max(self.steps - 1)
        alpha, sigma = (along(it.to(data), data) for it in self.alpha_and_sigma(step))
        prediction = network(alpha * data + sigma * noise, (step / self.steps).to(data), label)
        return (prediction - target_of(self.prediction, data, noise, alpha, sigma)).square().mean()

    def sampling_steps(self, count: int, strength: float = 1.0) -> Tensor:
        """Steps at which a sampler asks the network, then -1, int64 `(count + 1,)`: as far apart, the last of T first.

        The last lies as far from the clean image as the steps from one another, so that no call is spent on an image
        that is clean already (Lin et al. 2024, arXiv:2305.08891, section 3.3).

        Raises:
            ValueError: `count` is not 1 to `strength` times T.
        """
        most = max(1, round(strength * self.steps))
        if not 1 <= count <= most:
            raise ValueError(f"the number of steps is {count}; give 1 to {most}")
        return torch.linspace(most, 0, count + 1, dtype=torch.float64).round().long() - 1

    def denoiser(
        self, network: Network, steps: Tensor, label: Any = None, edit: Edit | None = None
    ) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """What samplers ask: data and noise of x at the number of one of `steps`."""

        def estimate(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
            step = steps[number].expand(len(x))
            alpha, sigma = (along(it.to(x), x) for it in self.alpha_and_sigma(step))
            told = network(x, (step / self.steps).to(x), label)
            data, noise = data_and_noise(self.prediction, told, x, alpha, sigma)
            if self.clip is None and edit is None:
                return data, noise
            # Both estimates are of the same x, so what changes one changes the other.
            data = data if self.clip is None else data.clamp(-self.clip, self.clip)
            data = data if edit is None else edit.kept(data)
            return data, (x - alpha * data) / sigma

        return estimate

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Network,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        numbers = self.sampling_steps(steps, edit.strength if edit else 1.0)
        alphas, sigmas = (it.to(noise) for it in self.alpha_and_sigma(numbers))
        start = noise if edit is None or edit.strength == 1 else alphas[0] * edit.image + sigmas[0] * noise
        return sampler(self.denoiser(network, numbers, label, edit), start, alphas, sigmas)
