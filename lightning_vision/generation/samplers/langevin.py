"""Annealed Langevin dynamics: random walks along scores, at lower and lower levels of noise."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["annealed_langevin"]


@torch.no_grad()
def annealed_langevin(
    score: Callable[[Tensor, int], Tensor],
    x: Tensor,
    sigmas: Tensor,
    eps: float = 2e-5,
    steps: int = 100,
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    denoise: bool = False,
) -> Tensor:
    """At each level x <- x + a / 2 s(x) + sqrt(a) z, with a = eps sigma_i^2 / sigma_L^2 (algorithm 1).

    With a mask it is inpainting (algorithm 2): before each step known pixels get noise of the level, and at the end
    they are as they were.

    Args:
        score: Maps x `(B, ...)` and the number of a level, from 0, to the gradient of the log-density.
        x: Where it starts, `(B, ...)`.
        sigmas: Levels from the highest to the lowest, `(L,)`.
        eps: Length of steps, above 0.
        steps: Of each level.
        draw: Makes standard normal numbers like x.
        known: Pixels that are known, of x's shape.
        mask: bool, broadcasts to x, True where they are.
        denoise: End with the image that x is expected to be, x + sigma_L^2 s(x), instead of one that still has noise of
            the last level (Jolicoeur-Martineau et al. 2021, arXiv:2009.05475).

    Returns:
        x after all levels.

    Reference: Song and Ermon 2019, arXiv:1907.05600
    """
    for level, sigma in enumerate(sigmas):
        length = eps * (sigma / sigmas[-1]).square()
        for _ in range(steps):
            if known is not None and mask is not None:
                x = torch.where(mask, known + sigma * draw(x), x)
            x = x + length / 2 * score(x, level) + length.sqrt() * draw(x)
    if denoise:
        x = x + sigmas[-1].square() * score(x, len(sigmas) - 1)
    return x if known is None or mask is None else torch.where(mask, known, x)
