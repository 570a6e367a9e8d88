"""Two views of tokens: as they are, and without what all of them share, which otherwise outweighs the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["split_dc", "token_distance"]


def split_dc(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The DC component of tokens `(B, N, C)`, which is `(B, 1, C)`, and what is left of them; their sum is the tokens.

    Of a map's discrete cosine transform the first coefficient is its mean, but for a factor, so no transform is needed
    to set it to 0. Computed in at least float32.

    Example:
        >>> import torch
        >>> split_dc(torch.tensor([[[1.0], [3.0]]]))
        (tensor([[[2.]]]), tensor([[[-1.],
                 [ 1.]]]))

    Reference: Fan et al. 2024, arXiv:2411.06786
    """
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    dc = wide.mean(dim=1, keepdim=True)
    return dc, wide - dc


def token_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between tokens of unit length, summed over tokens and averaged over images.

    Computed in at least float32.

    Args:
        student: `(B, N, C)`.
        teacher: `(B, N, C)`.

    Example:
        >>> import torch
        >>> float(token_distance(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 5.0]]])))
        2.0

    Reference: Fan et al. 2024, arXiv:2411.06786
    """
    wide = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    ours, theirs = (F.normalize(it.to(wide), dim=-1) for it in (student, teacher))
    return (ours - theirs).square().sum(dim=(1, 2)).mean()
