"""Kernel distance of two sets of features: the maximum mean discrepancy under a cubic kernel.

Letters: N real and M made images of D features; S images in a subset.
"""

import torch
from torch import Generator, Tensor

__all__ = ["kernel_distance"]


def kernel_distance(
    real: Tensor, made: Tensor, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of MMD^2 over random subsets, without bias: it may fall below 0.

    The kernel is (x^T y / D + 1)^3. Subsets have S images of each set, or as many as the smaller one has; where that is
    all of both, there is one subset.

    Args:
        real: `(N, D)`, N of at least 2.
        made: `(M, D)`, M of at least 2.
        subset_size: S, at least 2.
        subsets: How many, at least 1.
        seed: Of the draws.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.

    Reference: Binkowski et al. 2018, arXiv:1801.01401, equation 4 and section 4
    """
    # Here, for torchmetrics takes a while to import.
    from torchmetrics.image.kid import poly_mmd

    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features are {tuple(real.shape)} and {tuple(made.shape)}; give (N, D) and (M, D)")
    if min(subset_size, len(real), len(made)) < 2 or subsets < 1:
        raise ValueError(
            f"{subsets} subsets of {subset_size} images of {len(real)} and {len(made)} make no kernel distance; give "
            "at least one, of two"
        )
    size = min(subset_size, len(real), len(made))
    random = Generator().manual_seed(seed)
    found = []
    for _ in range(1 if size == len(real) == len(made) else subsets):
        one, other = (rows[torch.randperm(len(rows), generator=random)[:size].to(rows.device)] for rows in (real, made))
        found.append(poly_mmd(one, other))
    values = torch.stack(found).double()
    return float(values.mean()), float(values.std(unbiased=False))
