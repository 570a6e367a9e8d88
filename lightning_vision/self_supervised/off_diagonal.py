"""What stands beside the diagonal of a matrix."""

from torch import Tensor

__all__ = ["off_diagonal"]


def off_diagonal(matrix: Tensor) -> Tensor:
    """The numbers of a square matrix `(D, D)` that are not on its diagonal, `(D (D - 1),)`, row by row.

    >>> import torch
    >>> off_diagonal(torch.arange(9).view(3, 3)).tolist()
    [1, 2, 3, 5, 6, 7]
    """
    dim = len(matrix)
    # Without the first number, each D + 1 that follow end with one of the diagonal.
    return matrix.flatten()[1:].unflatten(0, (dim - 1, dim + 1))[:, :-1].flatten()
