"""Samplers on Gaussian paths x_t = alpha_t data + sigma_t noise, for any model that estimates data and noise.

Times are given as alpha and sigma, from the noisiest to the cleanest, `(N + 1,)` each; the last sigma may be 0.
Letters: t is the time of a step's start, s that of its end.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

__all__ = ["ddim", "ddpm", "dpm_solver_2m"]

# Maps x `(B, ...)` and the number of its time, from 0, to estimates of data and noise of x's shape.
Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@torch.no_grad()
def ddim(
    model: Denoiser,
    x: Tensor,
    alphas: Tensor,
    sigmas: Tensor,
    eta: float = 0.0,
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Steps that keep the estimated data and exchange a part of the estimated noise (equation 12).

        x_s = alpha_s data + sqrt(sigma_s^2 - d^2) noise + d z,    d = eta times the deviation of DDPM's posterior

    Args:
        model: Estimates data and noise.
        x: Where it starts, `(B, ...)`, at the first time.
        alphas: `(N + 1,)`.
        sigmas: `(N + 1,)`.
        eta: 0 draws nothing, 1 draws as much as DDPM.
        draw: Makes standard normal numbers like x.

    Returns:
        x at the last time.

    Raises:
        ValueError: eta is not 0 to 1.

    Reference: Song et al. 2021, arXiv:2010.02502
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; give 0, which draws nothing, to 1, which draws as much as DDPM")
    for number, (before, after) in enumerate(_steps(alphas, sigmas)):
        data, noise = model(x, number)
        fresh = eta * posterior_variance(before, after).sqrt()
        (alpha, sigma) = after
        x = alpha * data + (sigma.square() - fresh.square()).clamp_min(0).sqrt() * noise
        if eta:
            x = x + fresh * draw(x)
    return x


@torch.no_grad()
def ddpm(
    model: Denoiser,
    x: Tensor,
    alphas: Tensor,
    sigmas: Tensor,
    variance: Literal["small", "large"] = "small",
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """Ancestral steps: a draw from the Gaussian of x_s given x_t and the estimated data (equations 6 and 7).

    Args:
        model: Estimates data and noise.
        x: Where it starts, `(B, ...)`, at the first time.
        alphas: `(N + 1,)`.
        sigmas: `(N + 1,)`.
        variance: `small` is the posterior's, right where images are one point; `large` is that of the noise which the
            step from s to t adds, right where they are standard normal. A step to sigma 0 adds none.
        draw: Makes standard normal numbers like x.

    Returns:
        x at the last time.

    Reference: Ho et al. 2020, arXiv:2006.11239
    """
    for number, (before, after) in enumerate(_steps(alphas, sigmas)):
        data, _ = model(x, number)
        (alpha, sigma), (later, rest) = before, after
        added = _added_variance(before, after)
        x = (alpha / later * rest.square() * x + later * added * data) / sigma.square()
        if rest > 0:
            width = added if variance == "large" else posterior_variance(before, after)
            x = x + width.sqrt() * draw(x)
    return x


@torch.no_grad()
def dpm_solver_2m(model: Denoiser, x: Tensor, alphas: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++ of second order in several steps: one call of the model a step (algorithm 2).

    With lambda = log(alpha / sigma), h its gain in a step and r the gain of the step before over h,

        D = data + (data - data of the step before) / (2 r)
        x_s = sigma_s / sigma_t x_t - alpha_s (exp(-h) - 1) D

    The first step and one that ends at sigma 0, where h has no end, are of first order.

    Args:
        model: Estimates data and noise.
        x: Where it starts, `(B, ...)`, at the first time, whose alpha is above 0.
        alphas: `(N + 1,)`.
        sigmas: `(N + 1,)`.

    Returns:
        x at the last time.

    Reference: Lu et al. 2022, arXiv:2211.01095
    """
    lambdas = (alphas / sigmas).log()
    earlier: Tensor | None = None
    for number, ((_, sigma), (later, rest)) in enumerate(_steps(alphas, sigmas)):
        data, _ = model(x, number)
        gain, estimate = lambdas[number + 1] - lambdas[number], data
        if earlier is not None and rest > 0:
            ratio = (lambdas[number] - lambdas[number - 1]) / gain
            estimate = data + (data - earlier) / (2 * ratio)
        x = rest / sigma * x - later * torch.expm1(-gain) * estimate
        earlier = data
    return x


def posterior_variance(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """Variance of x_s when x_t and the data are known; before and after are (alpha, sigma) at t and s.

    sigma_s^2 / sigma_t^2 times the variance that the step from s to t adds. Reference: Ho et al. 2020, equation 7.
    """
    return after[1].square() / before[1].square() * _added_variance(before, after)


def _added_variance(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    """Variance of the noise that is added on the way from s to t."""
    return before[1].square() - (before[0] / after[0] * after[1]).square()


def _steps(alphas: Tensor, sigmas: Tensor) -> list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    times = list(zip(alphas, sigmas, strict=True))
    return list(pairwise(times))
