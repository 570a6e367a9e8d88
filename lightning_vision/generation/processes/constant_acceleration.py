"""Constant acceleration flow: ways from noise to images with a first velocity and an acceleration that stays.

Letters: B images `(B, C, H, W)`, x0 noise, x1 the image, v0 the velocity at x0, t in 0..1.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ..losses.pseudo_huber import pseudo_huber
from ..samplers.acceleration import accelerate
from .edit import Edit
from .flow_matching import coupled
from .gaussian import along
from .process import Network, Process

__all__ = ["ConstantAcceleration"]

CHOICES = {"coupling": ("optimal", "given"), "norm": ("squared", "huber"), "time_law": ("uniform", "exponential")}


@dataclass(frozen=True)
class ConstantAcceleration(Process):
    """x_t = (1 - t^2) x0 + t^2 x1 + (t - t^2) v0, of which one network tells v0 and another the acceleration.

    Noise must say which image it becomes: where any noise goes with any image, v0 leads to the mean of all images and
    the acceleration, which sees v0, stays on that way.

    Args:
        velocity_scale: alpha, v0 = alpha (x1 - x0), above 0: 1 is a straight way at one speed, without acceleration;
            above 1 it slows down.
        coupling: `optimal`: noise goes with images as `coupled` pairs those of a label; `given`: as it comes, for pairs
            that another flow has made (reflow), as the authors have them.
        norm: Of errors: `squared`, or `huber`, see `pseudo_huber`.
        time_law: How t is drawn: `uniform`, or `exponential`, more often near both ends.
        concentration: How much more often, above 0, of the latter: the density is cosh(concentration (t - 1/2)).

    Raises:
        ValueError: a setting is unknown or out of its range.

    Example:
        >>> flow, noise, images = ConstantAcceleration(), torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
        >>> networks = {"velocity": lambda x, t, y: -x, "acceleration": lambda x, t, y: x[:, :1]}
        >>> list(flow.terms(networks, images, noise, torch.rand(4)))
        ['loss', 'velocity', 'acceleration']

    Reference: Park et al. 2024, arXiv:2411.00322

    BibTeX:
        @inproceedings{park2024constant,
          title = {Constant Acceleration Flow},
          author = {Park, Dogyun and Lee, Sojin and Kim, Sihyeon and Lee, Taehoon and Hong, Youngjoon and
                    Kim, Hyunwoo J.},
          booktitle = {Advances in Neural Information Processing Systems},
          year = {2024},
          eprint = {2411.00322},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Both networks learn at once, the authors' one after the other. Their pairs are those of a trained diffusion
        model, and their errors on images LPIPS added to `huber`.
    """

    samplers: ClassVar[Mapping[str, Callable[..., Tensor]]] = {"accelerate": accelerate}

    velocity_scale: float = 1.5
    coupling: Literal["optimal", "given"] = "optimal"
    norm: Literal["squared", "huber"] = "squared"
    time_law: Literal["uniform", "exponential"] = "uniform"
    concentration: float = 4.0

    def __post_init__(self) -> None:
        for name in ("velocity_scale", "concentration"):
            if getattr(self, name) <= 0:
                raise ValueError(f"ConstantAcceleration: {name} is {getattr(self, name)}; give a number above 0")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                either = " or ".join(map(repr, known))
                raise ValueError(f"ConstantAcceleration: {name} is {getattr(self, name)!r}; give {either}")

    def build(self, make: Callable[..., nn.Module], channels: int) -> nn.ModuleDict:
        """`velocity`, and `acceleration`, which sees v0 behind x."""
        return nn.ModuleDict(
            {"velocity": make(), "acceleration": make(in_channels=2 * channels, out_channels=channels)}
        )

    def time(self, uniform: Tensor) -> Tensor:
        """t `(B,)` by draws `(B,)` in 0..1."""
        if self.time_law == "uniform":
            return uniform
        half = math.sinh(self.concentration / 2)
        return 0.5 + ((2 * uniform - 1) * half).asinh() / self.concentration

    def position(self, data: Tensor, noise: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
        """x_t of x1, x0, v0 and t `(B,)` (equation 7)."""
        t = along(time, data)
        return (1 - t.square()) * noise + t.square() * data + (t - t.square()) * velocity

    def velocity_loss(
        self, network: Network, data: Tensor, noise: Tensor, label: Any = None, uniform: Tensor | None = None
    ) -> Tensor:
        """The error of v0 (equation 9).

        Args:
            network: Maps x_t `(B, C, H, W)`, t `(B,)` and the labels to v0.
            data: x1.
            noise: x0.
            label: Handed to the network.
            uniform: t, `(B,)` in 0..1; None is 0, all that sampling asks for. Inversion asks at 1.
        """
        wanted = self.velocity_scale * (data - noise)
        time = noise.new_zeros(len(noise)) if uniform is None else uniform.to(data)
        return self._mean(network(self.position(data, noise, wanted, time), time, label) - wanted)

    def acceleration_loss(
        self,
        network: Callable[[Tensor, Tensor, Tensor, Any], Tensor],
        velocity: Tensor,
        data: Tensor,
        noise: Tensor,
        uniform: Tensor,
        label: Any = None,
    ) -> Tensor:
        """The error of the acceleration 2 (x1 - x0) - 2 v0 (equation 12).

        Args:
            network: Maps x_t, t `(B,)`, v0 and the labels to an acceleration.
            velocity: v0 as the other network tells it; no gradient goes there.
            data: x1.
            noise: x0.
            uniform: t, `(B,)` in 0..1.
            label: Handed to the network.
        """
        velocity, time = velocity.detach(), uniform.to(data)
        wanted = 2 * (data - noise) - 2 * velocity
        return self._mean(network(self.position(data, noise, velocity, time), time, velocity, label) - wanted)

    def terms(
        self, network: Any, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None, progress: float = 0.0
    ) -> dict[str, Tensor]:
        """`velocity` and `acceleration`, both at the same times, and their sum as `loss`."""
        if self.coupling == "optimal":
            noise = coupled(data, noise, label)
        time = self.time(uniform.to(data))
        velocity = self.velocity_loss(network["velocity"], data, noise, label, time)
        with torch.no_grad():
            start = network["velocity"](noise, torch.zeros_like(time), label)
        acceleration = self.acceleration_loss(_told(network["acceleration"]), start, data, noise, time, label)
        return {"loss": velocity + acceleration, "velocity": velocity, "acceleration": acceleration}

    def loss(self, network: Any, data: Tensor, noise: Tensor, uniform: Tensor, label: Any = None) -> Tensor:
        """The sum of both errors; `network` is a mapping, see `build`."""
        return self.terms(network, data, noise, uniform, label)["loss"]

    @torch.no_grad()
    def invert(self, network: Any, data: Tensor, steps: int, label: Any = None) -> Tensor:
        """The noise that images `(B, C, H, W)` came from (algorithm 3).

        Args:
            network: What `build` made, or functions in its place.
            data: x1.
            steps: At least 1.
            label: Handed to the network.
        """
        velocity = network["velocity"](data, data.new_ones(len(data)), label)
        field = _told(network["acceleration"])
        times = torch.linspace(1, 0, steps + 1).to(data)
        return accelerate(lambda x, t: field(x, t, velocity, label), velocity, data, times)

    def solve(
        self,
        sampler: Callable[..., Tensor],
        network: Any,
        noise: Tensor,
        steps: int,
        label: Any,
        edit: Edit | None,
    ) -> Tensor:
        """As `Process`; of an image to go on from, or of pixels to keep, the way from this noise is known."""
        times = torch.linspace(1 - edit.strength if edit else 0, 1, steps + 1).to(noise)
        field = _told(network["acceleration"])
        with torch.no_grad():
            velocity = network["velocity"](noise, noise.new_zeros(len(noise)), label)
        if edit is None:
            return sampler(lambda x, t: field(x, t, velocity, label), velocity, noise, times)
        known = 2 * (edit.image - noise) - 2 * velocity

        def acceleration(x: Tensor, t: Tensor) -> Tensor:
            told = field(x, t, velocity, label)
            return told if edit.mask is None else torch.where(edit.mask, known, told)

        start = self.position(edit.image, noise, velocity, times[0].expand(len(noise)))
        return sampler(acceleration, velocity, start, times)

    def _mean(self, difference: Tensor) -> Tensor:
        return pseudo_huber(difference).mean() if self.norm == "huber" else difference.square().mean()


def _told(network: Network) -> Callable[[Tensor, Tensor, Tensor, Any], Tensor]:
    """A network that sees v0 behind x."""
    return lambda x, time, velocity, label: network(torch.cat([x, velocity], dim=1), time, label)
