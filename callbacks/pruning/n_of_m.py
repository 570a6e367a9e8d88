"""N of M: of each M consecutive input weights at most N stay, which hardware can skip the rest of.

Graphics cards from NVIDIA's Ampere on compute 2:4 matrices at up to twice the rate, Mishra et al. 2021,
arXiv:2104.08378.
"""

import torch
from torch import Tensor

__all__ = ["keep_n_of_m", "parse_n_of_m"]


def parse_n_of_m(owner: str, pattern: str) -> tuple[int, int]:
    """N and M of `N:M`.

    Raises:
        ValueError: it is not two whole numbers with 0 < N < M.

    >>> parse_n_of_m("Pruning", "2:4")
    (2, 4)
    """
    kept, _, group = pattern.partition(":") if isinstance(pattern, str) else ("", "", "")
    if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group)):
        raise ValueError(f"{owner}: pattern is {pattern!r}; give N:M with 0 < N < M, as '2:4', in quotation marks.")
    return int(kept), int(group)


def keep_n_of_m(weight: Tensor, n: int, m: int) -> Tensor:
    """Boolean mask of the `n` largest magnitudes in each group of `m` consecutive inputs.

    Args:
        weight: Of a linear layer `(K, C)`, or of a convolution `(K, C, ...)`, where a group is of `m` channels at one
            position of the kernel; `C` is a multiple of `m`.
        n: How many stay of each group.
        m: Size of a group.

    >>> keep_n_of_m(torch.tensor([[1.0, -4.0, 3.0, 2.0]]), 2, 4)
    tensor([[False,  True,  True, False]])
    """
    groups = weight.movedim(1, -1).unflatten(-1, (-1, m)).abs()
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(n, dim=-1).indices, True)
    return kept.flatten(-2).movedim(-1, 1).contiguous()
