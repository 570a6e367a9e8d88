"""Consistency training: a network tells the image from any level of noise, and says the same at neighbouring ones.

Letters: B images `(B, C, H, W)`, z the noise of an image, sigma a level, x = alpha data + sigma z.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..losses.latent import kl_to_standard
from ..losses.pseudo_huber import pseudo_huber
from ..samplers.consistency import multistep_consistency
from .edit import Edit
from .flow_matching import coupled
from .gaussian import along
from .levels import karras_levels, lognormal_levels, neighbours, shrunk
from .process import Network, Process

__all__ = ["Consistency"]

CHOICES = {
    "coupling": ("variational", "independent", "optimal"),
    "kernel": ("exploding", "straight"),
    "schedule": ("doubling", "shrinking"),
}


@dataclass(frozen=True)
class Consistency(Process):
    """f(x, sigma) is to be the same at two neighbouring levels of an image and its noise, and the image at the lowest.

    f(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4000) with a network F; c_skip is 1 and c_out 0 at `sigma_min`.
    With `variational` coupling a second network, the encoder, says which noise an image goes with: z = mu + s eps.
    Ways then cross less, and a divergence keeps all z together standard normal, as sampling draws them.

    Args:
        coupling: `variational`; `independent`: any noise goes with any image, plain consistency training; `optimal`:
            as `coupled` pairs those of a label.
        beta: Weight of the divergence, at least 0; more keeps nearer to `independent`.
        kernel: `exploding`: alpha is 1; `straight`: alpha is 1 - sigma / sigma_max, the ways of flow matching.
        schedule: `doubling`: neighbours among `levels` levels, twice as many at each stage (improved consistency
            training); `shrinking`: any level, and one below by half of it, then a quarter and so on (easy consistency
            tuning).
        levels: Gaps between levels at the first stage of `doubling`, at least 1.
        stages: All of the same number of optimizer steps, at least 1.
        data_std: Standard deviation of the images' numbers, above 0.
        location: Mean of ln(sigma) in training.
        scale: Its standard deviation, above 0.
        sigma_min: Lowest level, above 0.
        sigma_max: Highest, above `sigma_min`.
        middle: Level of the last step in sampling by two or more, between the two.
        huber: Of `pseudo_huber`, above 0.

    Raises:
        ValueError: a setting is unknown or out of its range.

    Example:
        >>> images = torch.randn(4, 1, 8, 8)
        >>> process = Consistency(coupling="independent")
        >>> loss = process.loss(lambda x, t, y: -x, images, torch.randn_like(images), torch.rand(4))

    Reference: Silvestri et al. 2025, arXiv:2502.18197; Song and Dhariwal 2023, arXiv:2310.14189; `shrinking`: Geng et
        al. 2024, arXiv:2406.14548

    BibTeX:
        @inproceedings{silvestri2025vct,
          title = {{VCT}: Training Consistency Models with Variational Noise Coupling},
          author = {Silvestri, Gianluigi and Ambrogioni, Luca and Lai, Chieh-Hsin and Takida, Yuhta and
                    Mitsufuji, Yuki},
          booktitle = {International Conference on Machine Learning},
          year = {2025},
          eprint = {2502.18197},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        The encoder says ln(s^2); the authors' code takes s as the softplus of its answer. With `doubling` the authors'
        code bends the distance of each number, here as Song and Dhariwal have it that of the whole image. With
        `shrinking` f is the image at the lowest level in training, too, and not only in sampling.
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"multistep": multistep_consistency}
    scheduled: ClassVar[bool] = True
    unguided: ClassVar[tuple[str, ...]] = ("encoder",)

    coupling: Literal["variational", "independent", "optimal"] = "variational"
    beta: float = 10.0
    kernel: Literal["exploding", "straight"] = "exploding"
    schedule: Literal["doubling", "shrinking"] = "doubling"
    levels: int = 10
    stages: int = 8
    data_std: float = 0.5
    location: float = -1.1
    scale: float = 2.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    middle: float = 0.821
    huber: float = 0.00054

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                either = " or ".join(map(repr, known))
                raise ValueError(f"Consistency: {name} is {getattr(self, name)!r}; give {either}")
        for name in ("data_std", "scale", "sigma_min", "huber"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Consistency: {name} is {getattr(self, name)}; give a number above 0")
        for name in ("levels", "stages"):
            if getattr(self, name) < 1:
                raise ValueError(f"Consistency: {name} is {getattr(self, name)}; give at least 1")
        if self.beta < 0:
            raise ValueError(f"Consistency: beta is {self.beta}; give a number of at least 0")
        if not self.sigma_min < self.middle < self.sigma_max:
            rising = f"sigma_min={self.sigma_min}, middle={self.middle}, sigma_max={self.sigma_max}"
            raise ValueError(f"Consistency: the levels are {rising}; give numbers that rise")

    def build(self, make: Callable[..., nn.Module], channels: int) -> nn.Module:
        """F, or F as `generator` beside an `encoder`, which answers mu and ln(s^2) of an image and time 0."""
        if self.coupling != "variational":
            return make()
        return nn.ModuleDict({"generator": make(), "encoder": make(out_channels=2 * channels)})

    def estimate(self, network: Network, x: Tensor, sigma: Tensor, label: Any = None) -> Tensor:
        """f: the image that x `(B, C, H, W)` with noise of sigma `(B,)` came from."""
        level, own = along(sigma, x), self.data_std**2
        # As if the noise began at the lowest level, so that f is x there.
        beyond = level - self.sigma_min
        rest = 1 - beyond / (self.sigma_max - self.sigma_min) if self.kernel == "straight" else torch.ones_like(level)
        shrink = (own * self._alpha(level).square() + level.square()).rsqrt()
        # Networks see a thousand times that: no more than the authors', so that neighbouring levels look alike to them.
        told = network(shrink * x, sigma.log() / 4000, label)
        return own * rest / (beyond.square() + own * rest.square()) * x + beyond * self.data_std * shrink * told

    def noised(self, data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x of data and z at sigma `(B,)`."""
        level = along(sigma, data)
        return self._alpha(level) * data + level * noise

    def emitted(self, encoder: Network, data: Tensor, noise: Tensor, label: Any = None) -> tuple[Tensor, Tensor]:
        """z = mu + s eps of images by the encoder, and the divergence of N(mu, s^2) from N(0, 1), `(B,)`.

        Args:
            encoder: Maps images over `data_std`, time 0 and the labels to mu and ln(s^2), `(B, 2C, H, W)`.
            data: Images `(B, C, H, W)`.
            noise: eps, standard normal, of their shape.
            label: Handed to the encoder.
        """
        told = encoder(data / self.data_std, data.new_zeros(len(data)), label).to(data)
        mean, log_variance = told.chunk(2, dim=1)
        return mean + (log_variance / 2).exp() * noise, kl_to_standard(mean, log_variance)

    def pair(self, uniform: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        """The level of f and the one below, of its target, each `(B,)`, by draws `(B,)` in 0..1."""
        sigma = lognormal_levels(uniform, self.sigma_min, self.sigma_max, self.location, self.scale)
        stage = min(int(progress * self.stages), self.stages - 1)
        if self.schedule == "shrinking":
            return sigma, shrunk(sigma, 0.5 ** (stage + 1), self.sigma_min)
        return neighbours(sigma, karras_levels(self.levels * 2**stage + 1, self.sigma_min, self.sigma_max))

    def terms(
        self, network: Any, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """`consistency`, weighted by 1 over the gap of the levels; `kl` by `beta` over the highest gap; and the sum.

        No gradient goes through the target, which the same network tells with the same dropout.
        """
        generator, divergence = network, None
        if self.coupling == "variational":
            generator = network["generator"]
            noise, divergence = self.emitted(network["encoder"], data, noise, label)
        elif self.coupling == "optimal":
            noise = coupled(data, noise, label)
        pair = self.pair(uniform, progress)
        # Neighbours may be one number in half precision.
        gap, (sigma, lower) = pair[0] - pair[1], (it.to(data) for it in pair)
        # The stream of random numbers is where it was when the target is told.
        with torch.random.fork_rng([data.device] if data.is_cuda else []):
            told = self.estimate(generator, self.noised(data, noise, sigma), sigma, label)
        with torch.no_grad():
            target = self.estimate(generator, self.noised(data, noise, lower), lower, label)
        consistency = (pseudo_huber(told - target, self.huber) / gap).mean()
        if divergence is None:
            return {"loss": consistency}
        high, below = self.pair(uniform.new_ones(1), progress)
        kl = self.beta * divergence.mean() / (high - below).to(data).squeeze()
        return {"loss": consistency + kl, "consistency": consistency, "kl": kl}

    def loss(self, network: Any, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """As `terms` at the first stage; with `variational` coupling `network` is a mapping, see `build`."""
        return self.terms(network, data, noise, uniform, label)["loss"]

    def times(self, steps: int, strength: float = 1.0) -> Tensor:
        """Levels at which a sampler asks f, `(steps,)`: `sigma_max`, and from two on more, down to `middle`.

        With a `strength` below 1 they begin at that share of the way from the lowest level.
        """
        ends = [it ** (1 / 7) for it in (self.sigma_max, self.middle, self.sigma_min)]
        share = (1 - strength) + strength * torch.linspace(0, (ends[0] - ends[1]) / (ends[0] - ends[2]), steps)
        levels: Tensor = (ends[0] + share * (ends[2] - ends[0])) ** 7
        return levels

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Any,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        """As `Process`; noise between steps goes with the estimate as the coupling has it."""
        variational = self.coupling == "variational"
        generator = network["generator"] if variational else network

        def noised(data: Tensor, fresh: Tensor, sigma: Tensor) -> Tensor:
            # Where there is no image a stand-in may answer for the encoder.
            if variational and len(data):
                fresh, _ = self.emitted(network["encoder"], data, fresh, label)
            return self.noised(data, fresh, sigma)

        def image(x: Tensor, sigma: Tensor) -> Tensor:
            data = self.estimate(generator, x, sigma, label)
            return data if edit is None else edit.kept(data)

        times = self.times(steps, edit.strength if edit else 1.0).to(noise)
        start = times[0] * noise
        if edit is not None and edit.strength < 1:
            with torch.no_grad():
                start = noised(edit.image, noise, times[0].expand(len(noise)))
        return sampler(image, noised, start, times)

    def _alpha(self, level: Tensor) -> Tensor:
        return 1 - level / self.sigma_max if self.kernel == "straight" else torch.ones_like(level)
