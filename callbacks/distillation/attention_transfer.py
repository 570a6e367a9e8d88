"""Attention transfer: a student looks where its teacher looks, whatever the widths of the two."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._checks import number
from ._layouts import at_one_size, is_aligned, positions

__all__ = ["attention_map", "attention_transfer_loss"]


def attention_map(features: Tensor, power: float = 2.0) -> Tensor:
    """How strongly each position of feature maps or tokens answers: sum_c |A_c|^p over channels c.

    Args:
        features: Maps `(B, C, H, W)` or tokens `(B, N, C)`.
        power: p, at least 1; 2 as the authors. A larger one looks at the strongest channels alone.

    Returns:
        `(B, H, W)` or `(B, N)`, in at least float32, as it was before normalising.

    Raises:
        ValueError: `power` is below 1, and the gradient of a channel that is 0 would be infinite.

    Example:
        >>> import torch
        >>> attention_map(torch.ones(1, 3, 2, 2))
        tensor([[[3., 3.],
                 [3., 3.]]])

    Reference: Zagoruyko & Komodakis 2017, arXiv:1612.03928
    """
    number("attention_map", "power", power, 1)
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return wide.abs().pow(power).sum(dim=1 if features.ndim == 4 else 2)


def attention_transfer_loss(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference between the attention of a student's layer and a teacher's, each of length 1.

    With Q the attention of an image, flattened: (Q_S / |Q_S| - Q_T / |Q_T|)^2, the mean over positions and images, as
    the authors' code has it (Eq. 2 has the norm of the difference). There are no parameters, and widths may differ.
    Where sizes differ, the attention of the larger layer is averaged down before it is normalised; tokens are laid out
    as a square, without those in front of it that stand for no patch.

    Args:
        student: Maps `(B, C, H, W)` or tokens `(B, N, C)`.
        teacher: Maps or tokens of the same images, of any width and size.
        power: p of `attention_map`.

    Raises:
        ValueError: One of the two is neither maps nor tokens, or `power` is below 1.

    Example:
        >>> import torch
        >>> maps = torch.rand(2, 3, 4, 4)
        >>> float(attention_transfer_loss(maps, 2 * maps))
        0.0

    Reference: Zagoruyko & Komodakis 2017, arXiv:1612.03928

    BibTeX:
        @inproceedings{zagoruyko2017paying,
          title = {Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
                   via Attention Transfer},
          author = {Zagoruyko, Sergey and Komodakis, Nikos},
          booktitle = {International Conference on Learning Representations},
          year = {2017},
          eprint = {1612.03928},
          archivePrefix = {arXiv},
        }
    """
    if student.ndim == 2 or not is_aligned(student.shape, teacher.shape):
        student, teacher = positions(student), positions(teacher)
    ours, theirs = attention_map(student, power), attention_map(teacher, power)
    if ours.ndim == 3:
        ours, theirs = at_one_size(ours, theirs)
    ours, theirs = (F.normalize(it.flatten(1), dim=1) for it in (ours, theirs))
    return F.mse_loss(ours, theirs)
