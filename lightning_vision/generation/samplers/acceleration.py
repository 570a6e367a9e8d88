"""Ways with a first velocity and an acceleration that stays, which one step follows to the end."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["accelerate"]


@torch.no_grad()
def accelerate(acceleration: Callable[[Tensor, Tensor], Tensor], velocity: Tensor, x: Tensor, times: Tensor) -> Tensor:
    """Steps x <- x + h v0 + h (t + h / 2) a(x, t), exact for any number of them where a is constant (equation 13).

    Args:
        acceleration: Maps x `(B, ...)` and t `(B,)` to a; it may know v0.
        velocity: v0, `(B, ...)`.
        x: Where it starts, at `times[0]`.
        times: `(N + 1,)`: from 0 to 1 for images, from 1 to 0 back to the noise that they came from.

    Returns:
        x at `times[-1]`.

    Reference: Park et al. 2024, arXiv:2411.00322
    """
    for number in range(len(times) - 1):
        now, step = times[number], times[number + 1] - times[number]
        x = x + step * velocity + step * (now + step / 2) * acceleration(x, now.expand(len(x)))
    return x
