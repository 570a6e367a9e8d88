"""Sampling with a function that tells the image from any level of noise: one step, or a few with fresh noise."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["multistep_consistency"]


@torch.no_grad()
def multistep_consistency(
    model: Callable[[Tensor, Tensor], Tensor],
    noised: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    times: Tensor,
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Tensor:
    """data <- model(noised(data, z, t), t) at each further time, with fresh z (algorithm 1).

    Args:
        model: Maps x `(B, ...)` and t `(B,)` to an estimate of the data.
        noised: Maps data, standard normal numbers like them and t `(B,)` to x at t.
        x: Where it starts, `(B, ...)`, at `times[0]`.
        times: From the noisiest to the cleanest, `(N,)`: one is one-step sampling and draws nothing.
        draw: Makes standard normal numbers like a tensor.

    Returns:
        The last estimate.

    Reference: Song et al. 2023, arXiv:2303.01469
    """
    data = model(x, times[0].expand(len(x)))
    for time in times[1:]:
        t = time.expand(len(x))
        data = model(noised(data, draw(data), t), t)
    return data
