"""Layers of the compact transformers: tokenizer, block, positions, SeqPool (Hassani et al. 2021, arXiv:2104.05704)."""

from itertools import pairwise

import torch
from timm.layers import Attention, DropPath, Mlp
from torch import Tensor, nn

__all__ = ["CompactBlock", "ConvTokenizer", "SeqPool", "seq_pool", "sine_positions"]


def seq_pool(tokens: Tensor, scores: Tensor) -> Tensor:
    """Average tokens with the softmax of their scores: z = softmax(g(x))^T x (Eq. 4 to 6).

    Args:
        tokens: `(B, N, D)`.
        scores: g(x), one a token, `(B, N)`; equal scores give the mean.

    Returns:
        `(B, D)`.

    Reference: Hassani et al. 2021, arXiv:2104.05704
    """
    return (scores.softmax(dim=1).unsqueeze(1) @ tokens).squeeze(1)


class SeqPool(nn.Module):
    """Pool a sequence of tokens by an attention it learns, in the place of a class token.

    Args:
        dim: Size of a token.

    Reference: Hassani et al. 2021, arXiv:2104.05704
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(B, dim)` of `(B, N, dim)`."""
        return seq_pool(tokens, self.score(tokens).squeeze(-1))


def sine_positions(count: int, dim: int) -> Tensor:
    """Fixed positions: sine of p / 10000^(2i/dim) at even, cosine at odd places of the embedding.

    Args:
        count: Tokens; p runs over 0 .. count-1.
        dim: Size of a token; i is the pair of places.

    Returns:
        `(1, count, dim)`, values in -1..1, float32.

    Reference: Vaswani et al. 2017, arXiv:1706.03762
    """
    place = torch.arange(dim)
    angle = torch.arange(count).unsqueeze(1) / 10000 ** (2 * (place // 2) / dim)
    return torch.where(place % 2 == 0, angle.sin(), angle.cos()).unsqueeze(0)


class ConvTokenizer(nn.Module):
    """Turn an image into a grid of tokens by convolution, ReLU and max pooling, or by plain patches.

    Args:
        in_chans: Channels of the image.
        embed_dim: Size of a token.
        n_conv_layers: Convolutions, each followed by ReLU and a 3x3 max pooling of stride 2; all but the last have 64
            channels.
        kernel_size: Side of the filters, pixels; stride max(1, kernel_size // 2 - 1), padding max(1, kernel_size // 2).
        patch_size: Side of plain patches, pixels; one convolution with a bias and nothing else.

    Reference: Hassani et al. 2021, arXiv:2104.05704
    """

    def __init__(
        self, in_chans: int, embed_dim: int, n_conv_layers: int = 1, kernel_size: int = 3, patch_size: int | None = None
    ) -> None:
        super().__init__()
        if patch_size is not None:
            self.steps = [(patch_size, patch_size, 0)]
            self.layers = nn.Sequential(nn.Conv2d(in_chans, embed_dim, patch_size, patch_size))
        else:
            stride, padding = max(1, kernel_size // 2 - 1), max(1, kernel_size // 2)
            self.steps = [(kernel_size, stride, padding), (3, 2, 1)] * n_conv_layers
            self.layers = nn.Sequential()
            channels = [in_chans] + [64] * (n_conv_layers - 1) + [embed_dim]
            for before, after in pairwise(channels):
                convolution = nn.Conv2d(before, after, kernel_size, stride, padding, bias=False)
                self.layers.extend([convolution, nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)])
        self.reduction = 1
        for _, stride, _ in self.steps:
            self.reduction *= stride
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)

    def grid(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tokens for an image of `img_size` (height, width) pixels.

        Raises:
            ValueError: nothing is left of the image.
        """
        height, width = img_size
        for kernel, stride, padding in self.steps:
            height, width = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        if height < 1 or width < 1:
            raise ValueError(
                f"ConvTokenizer: an image of {img_size[0]}x{img_size[1]} pixels is too small for one token"
            )
        return height, width

    def forward(self, x: Tensor) -> Tensor:
        """`(B, embed_dim, rows, columns)` of an image `(B, in_chans, H, W)`."""
        return self.layers(x)


class CompactBlock(nn.Module):
    """Transformer block that normalises the trunk between attention and MLP, as the authors' code does.

    x <- norm2(x + attention(norm1(x))), then x <- x + mlp(x). A usual pre-norm block would add the MLP to the trunk as
    it was before norm2.

    Args:
        dim: Size of a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden over token size in the MLP.
        proj_drop: Dropout after attention and in the MLP, fraction.
        attn_drop: Dropout on the attention weights, fraction.
        drop_path: Chance to skip each branch for a sample, fraction.

    Reference: Hassani et al. 2021, arXiv:2104.05704
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 2.0,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `(B, N, dim)`, the same shape out."""
        x = self.norm2(x + self.drop_path(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(x))
