"""Levels of noise, and which two of them consistency training compares: nearer to one another as it goes on.

Letters: sigma a level, the standard deviation of the noise that is added; B images.
"""

import math

import torch
from torch import Tensor

__all__ = ["karras_levels", "lognormal_levels", "neighbours", "shrunk"]


def karras_levels(count: int, lowest: float, highest: float, rho: float = 7.0) -> Tensor:
    """Levels from the lowest to the highest, evenly spaced in sigma^(1/rho), float64 `(count,)`.

    Reference: Karras et al. 2022, arXiv:2206.00364, equation 5
    """
    ends = lowest ** (1 / rho), highest ** (1 / rho)
    levels: Tensor = torch.linspace(*ends, count, dtype=torch.float64) ** rho
    return levels


def lognormal_levels(
    uniform: Tensor, lowest: float, highest: float, location: float = -1.1, scale: float = 2.0
) -> Tensor:
    """sigma `(B,)` by draws `(B,)` in 0..1, of normal logarithm, between the lowest and the highest.

    Args:
        uniform: The draws.
        lowest: Above 0.
        highest: Above `lowest`.
        location: Mean of ln(sigma) if it had no ends; the default is Song's and Dhariwal's.
        scale: Its standard deviation likewise.
    """
    below, above = (0.5 * math.erfc((location - math.log(it)) / scale / math.sqrt(2)) for it in (lowest, highest))
    # At the very lowest level there is nothing to compare with.
    share = below + (above - below) * uniform.float().clamp(1e-6, 1 - 1e-6)
    return (location + scale * torch.special.ndtri(share)).exp().clamp(lowest, highest)


def neighbours(sigma: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """The levels `(N,)`, rising, next above and next below sigma `(B,)`.

    With `lognormal_levels` a pair is as likely as Song and Dhariwal have it (arXiv:2310.14189, section 3.5).
    """
    levels = levels.to(sigma)
    above = torch.searchsorted(levels, sigma, right=True).clamp(1, len(levels) - 1)
    return levels[above], levels[above - 1]


def shrunk(sigma: Tensor, share: float, lowest: float) -> Tensor:
    """The level below sigma `(B,)`: by `share` of it, by up to 5 times as much where it is small; `lowest` at least.

    sigma (1 - share n), n = 1 + 8 sigmoid(-sigma). Reference: Geng et al. 2024, arXiv:2406.14548
    """
    return (sigma * (1 - share * (1 + 8 * torch.sigmoid(-sigma)))).clamp_min(lowest)
