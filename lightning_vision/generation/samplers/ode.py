"""Solvers of dx/dt = f(x, t): each step of Euler asks the model once, of the midpoint and of Heun twice."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["euler", "heun", "midpoint"]

# Maps x `(B, ...)` and t `(B,)` to dx/dt, of x's shape.
Velocity = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def euler(model: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """x <- x + h f(x, t), of first order.

    Args:
        model: f.
        x: Where it starts, `(B, ...)`, at `times[0]`.
        times: Of the steps, `(N + 1,)`, rising or falling.

    Returns:
        x at `times[-1]`.
    """
    for now, later in pairwise(times):
        x = x + (later - now) * model(x, now.expand(len(x)))
    return x


@torch.no_grad()
def midpoint(model: Velocity, x: Tensor, times: Tensor) -> Tensor:
    """x <- x + h f(x + h / 2 f(x, t), t + h / 2), of second order; arguments as `euler`."""
    for now, later in pairwise(times):
        step = later - now
        half = x + step / 2 * model(x, now.expand(len(x)))
        x = x + step * model(half, (now + step / 2).expand(len(x)))
    return x


@torch.no_grad()
def heun(model: Velocity, x: Tensor, times: Tensor, last_euler: bool = False) -> Tensor:
    """x <- x + h (f(x, t) + f(x + h f(x, t), t + h)) / 2, of second order.

    Args:
        model: f.
        x: Where it starts, `(B, ...)`, at `times[0]`.
        times: Of the steps, `(N + 1,)`, rising or falling.
        last_euler: Whether the last step is one of Euler's, where f is not defined at the last time.

    Returns:
        x at `times[-1]`.

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 1
    """
    last = len(times) - 2
    for number, (now, later) in enumerate(pairwise(times)):
        step, slope = later - now, model(x, now.expand(len(x)))
        if not (last_euler and number == last):
            slope = (slope + model(x + step * slope, later.expand(len(x)))) / 2
        x = x + step * slope
    return x
