"""What networks of generation are told besides the image: a time, and the label of a class or none."""

import math

import torch
from torch import Tensor, nn

__all__ = ["Conditions", "waves"]


def waves(time: Tensor, dim: int, longest: float = 10_000.0) -> Tensor:
    """Cosines and sines of 1000 t at geometric frequencies from 1 to 1 / `longest`, `(B, dim)`.

    Args:
        time: t, `(B,)`, of about unit size.
        dim: Even.
        longest: The longest wave over the shortest.

    Reference: Ho et al. 2020, arXiv:2006.11239, appendix B, after Vaswani et al. 2017
    """
    half = dim // 2
    frequency = torch.exp(-math.log(longest) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    angle = 1000 * time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Conditions(nn.Module):
    """A vector `(B, dim)` for time and label: an MLP of the time's waves, plus a row of a table.

    Args:
        dim: Width of the vector.
        num_classes: Labels 0 .. num_classes - 1; one row more stands for no label. 0: none is ever given.

    Raises:
        ValueError: from the constructor, `dim` is odd; from `forward`, labels where there are no classes.
    """

    def __init__(self, dim: int, num_classes: int = 0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"the width of time and label is {dim}; give an even number")
        self.dim, self.num_classes = dim, num_classes
        self.time = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.label = nn.Embedding(num_classes + 1, dim) if num_classes else None

    def forward(self, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Time `(B,)`, label int64 `(B,)` or None; `num_classes` stands for no label, as does None."""
        # Waves are told in float32 whatever the network's precision.
        vector: Tensor = self.time(waves(time, self.dim).to(next(self.time.parameters()).dtype))
        if self.label is None:
            if label is not None:
                raise ValueError("the network has num_classes=0 and was given labels; build it with num_classes")
            return vector
        if label is None:
            label = torch.full_like(time, self.num_classes, dtype=torch.int64)
        return vector + self.label(label)
