"""Constant acceleration flow: ways from noise to images with a first velocity and an acceleration that stays.

Letters: B images `(B, C, H, W)`, x0 noise, x1 the image, v0 the velocity at x0, t in 0..1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gaussian import along
from .process import Network

__all__ = ["ConstantAcceleration", "accelerate"]


@dataclass(frozen=True)
class ConstantAcceleration:
    """x_t = (1 - t^2) x0 + t^2 x1 + (t - t^2) v0, of which one network tells v0 and another the acceleration.

    Args:
        velocity_scale: alpha, v0 = alpha (x1 - x0), above 0: 1 is a straight way at one speed, without acceleration;
            above 1 it slows down.

    Raises:
        ValueError: `velocity_scale` is not positive.

    Example:
        >>> flow, x0, x1 = ConstantAcceleration(), torch.randn(4, 1, 8, 8), torch.rand(4, 1, 8, 8)
        >>> loss = flow.velocity_loss(lambda x, t, y: -x, x1, x0)

    Reference: Park et al. 2024, arXiv:2411.00322
    """

    velocity_scale: float = 1.5

    def __post_init__(self) -> None:
        if self.velocity_scale <= 0:
            raise ValueError(f"ConstantAcceleration: velocity_scale is {self.velocity_scale}; give a number above 0")

    def velocity_loss(self, network: Network, data: Tensor, noise: Tensor, label: Any = None) -> Tensor:
        """The mean squared error of v0.

        Args:
            network: Maps x0 `(B, C, H, W)`, t = 0 `(B,)` and the labels to v0.
            data: x1.
            noise: x0.
            label: Handed to the network.
        """
        start = network(noise, noise.new_zeros(len(noise)), label)
        return (start - self.velocity_scale * (data - noise)).square().mean()

    def acceleration_loss(
        self,
        network: Callable[[Tensor, Tensor, Tensor, Any], Tensor],
        velocity: Tensor,
        data: Tensor,
        noise: Tensor,
        uniform: Tensor,
        label: Any = None,
    ) -> Tensor:
        """The mean squared error of the acceleration 2 (x1 - x0) - 2 v0.

        Args:
            network: Maps x_t, t `(B,)`, v0 and the labels to an acceleration.
            velocity: v0 as the other network tells it; no gradient goes there.
            data: x1.
            noise: x0.
            uniform: t, `(B,)` in 0..1.
            label: Handed to the network.
        """
        velocity, t = velocity.detach(), along(uniform.to(data), data)
        x = (1 - t.square()) * noise + t.square() * data + (t - t.square()) * velocity
        wanted = 2 * (data - noise) - 2 * velocity
        return (network(x, t.flatten(), velocity, label) - wanted).square().mean()


@torch.no_grad()
def accelerate(acceleration: Callable[[Tensor, Tensor], Tensor], velocity: Tensor, x: Tensor, times: Tensor) -> Tensor:
    """Steps x <- x + h v0 + h (t + h / 2) a(x, t), exact for any number of them where a is constant.

    Args:
        acceleration: Maps x `(B, ...)` and t `(B,)` to a; it may know v0.
        velocity: v0, `(B, ...)`.
        x: Where it starts, at `times[0]`.
        times: `(N + 1,)`: from 0 to 1 for images, from 1 to 0 back to the noise that they came from.

    Returns:
        x at `times[-1]`.
    """
    for number in range(len(times) - 1):
        now, step = times[number], times[number + 1] - times[number]
        x = x + step * velocity + step * (now + step / 2) * acceleration(x, now.expand(len(x)))
    return x
