"""A projector that lays out a student's features as its teacher's tokens, by attention from learned queries."""

import torch
from torch import Size, Tensor, nn

__all__ = ["CrossAttentionProjector"]


class CrossAttentionProjector(nn.Module):
    """Learned queries, one for each token of the teacher, attend to a student's tokens, whatever their kind and number.

    The student's tokens are normalised and get learned positions; what a query gathers goes through a perceptron.

    Args:
        student: Shape of the student's tokens `(B, M, D)`; B does not matter.
        teacher: Shape of the teacher's tokens `(B, N, C)`.
        heads: Of the attention; a divisor of C.

    Shape:
        `(B, M, D)` to `(B, N, C)`.

    Raises:
        ValueError: M or D is another than at first.

    Reference: Fan et al. 2024, arXiv:2411.06786
    """

    def __init__(self, student: Size, teacher: Size, heads: int) -> None:
        super().__init__()
        (count, width), (tokens, out) = student[1:], teacher[1:]
        self.queries = nn.Parameter(torch.randn(tokens, out))
        self.positions = nn.Parameter(0.02 * torch.randn(count, width))
        self.norm_before, self.norm_after = nn.LayerNorm(width), nn.LayerNorm(out)
        self.attention = nn.MultiheadAttention(out, heads, kdim=width, vdim=width, batch_first=True)
        self.widen, self.narrow = nn.Linear(out, 4 * out), nn.Linear(4 * out, out)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:] != self.positions.shape:
            now, then = tuple(features.shape[1:]), tuple(self.positions.shape)
            raise ValueError(
                f"ScaleKD: the network's features are {now}, tokens and numbers, and were {then} at set-up; "
                "give images of one size."
            )
        known = self.norm_before(features) + self.positions
        gathered, _ = self.attention(self.queries.expand(len(features), -1, -1), known, known, need_weights=False)
        gathered = self.norm_after(gathered)
        projected: Tensor = gathered + self.narrow(self.widen(gathered).relu())
        return projected
