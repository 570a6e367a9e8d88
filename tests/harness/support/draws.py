"""Whether two samplers draw from the same distribution."""

import torch
from torch import Tensor

__all__ = ["apart"]


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of a mean, in standard errors of that difference.

    Means of every quantity, of its square and of the product of every two; where both samples are constant the
    difference is 0 if they are equal, else infinite.

    Args:
        ours: `(N, K)`, N draws of K quantities.
        theirs: `(M, K)`.
    """
    means, variances = [], []
    for sample in (ours.double(), theirs.double()):
        products = (sample[:, :, None] * sample[:, None]).flatten(1)
        moments = torch.cat([sample, products], 1)
        means.append(moments.mean(0))
        variances.append(moments.var(0) / len(sample))
    errors = (variances[0] + variances[1]).sqrt()
    distance = (means[0] - means[1]).abs()
    return torch.where(distance < 1e-9, 0.0, distance / errors).max().item()
