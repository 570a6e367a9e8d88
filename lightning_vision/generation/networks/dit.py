"""DiT: a transformer on patches of the image, whose blocks are scaled, shifted and gated by time and label.

Letters: B images `(B, C, H, W)`, N patches, D features of a patch.
"""

from typing import Any

from timm.layers import Mlp, build_sincos2d_pos_embed
from timm.layers.attention import Attention
from torch import Tensor, nn

from .conditions import Conditions

__all__ = ["DiT"]


class DiTBlock(nn.Module):
    """Attention and MLP, each between a scale and shift of the normalised tokens and a gate, which begins at 0.

    Args:
        dim: D, and width of the conditions.
        heads: Of the attention.
        mlp_ratio: Width of the MLP over D.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(dim, num_heads=heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=_TanhGELU)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, tokens: Tensor, conditions: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(conditions)[:, None].chunk(6, dim=2)
        tokens = tokens + gate1 * self.attention(self.norm1(tokens) * (1 + scale1) + shift1)
        found: Tensor = tokens + gate2 * self.mlp(self.norm2(tokens) * (1 + scale2) + shift2)
        return found


class DiT(nn.Module):
    """Patches, blocks with adaLN-Zero, and a linear layer that tells the pixels of each patch.

    Args:
        image_size: H and W, one number.
        patch_size: Pixels of a patch's side, a divisor of `image_size`.
        in_channels: C of images.
        dim: D, a multiple of `heads` and of 4.
        depth: Blocks.
        heads: Of each attention.
        mlp_ratio: Width of each MLP over D.
        num_classes: Of labels; 0 where images have none.
        out_channels: C of answers; None is `in_channels`.

    Shape:
        `(B, C, H, W)`, time `(B,)` and label int64 `(B,)` or None (all without a label) to answers of the same H and W.

    Raises:
        ValueError: from the constructor, sizes do not fit; from `forward`, the image has another size.

    Example:
        >>> import torch
        >>> network = DiT(image_size=8, patch_size=2, in_channels=1, dim=32, depth=2, heads=2, num_classes=10)
        >>> network(torch.zeros(2, 1, 8, 8), torch.rand(2), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 8, 8])

    Reference: Peebles and Xie 2023, arXiv:2212.09748
    """

    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 3,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"DiT: patch_size is {patch_size}; give a divisor of image_size={image_size}")
        if dim % heads or dim % 4:
            raise ValueError(f"DiT: dim is {dim}; give a multiple of 4 and of heads={heads}")
        self.in_channels, self.num_classes = in_channels, num_classes
        self.image_size, self.patch = image_size, patch_size
        self.grid = image_size // patch_size
        self.conditions = Conditions(dim, num_classes)
        self.embed = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        positions = build_sincos2d_pos_embed([self.grid, self.grid], dim)
        self.register_buffer("positions", positions[None], persistent=False)
        self.blocks = nn.ModuleList(DiTBlock(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.modulate = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))
        self.out_channels = in_channels if out_channels is None else out_channels
        self.end = nn.Linear(dim, self.out_channels * patch_size**2)
        self.apply(_xavier)
        # Gates of 0: each block begins as the identity; and the answer as 0.
        for part in (*(it.get_submodule("modulate") for it in self.blocks), self.modulate, self.end):
            for parameter in part.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        if x.shape[2:] != (self.image_size, self.image_size):
            sides = " x ".join(map(str, x.shape[2:]))
            raise ValueError(f"DiT sees {self.image_size} x {self.image_size} pixels and got {sides}; set image_size")
        conditions = self.conditions(time, label)
        positions: Any = self.positions
        tokens = self.embed(x).flatten(2).mT + positions.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, conditions)
        shift, scale = self.modulate(conditions)[:, None].chunk(2, dim=2)
        pixels = self.end(self.norm(tokens) * (1 + scale) + shift)
        cells = pixels.unflatten(1, (self.grid, self.grid)).unflatten(3, (self.out_channels, self.patch, self.patch))
        found: Tensor = cells.permute(0, 3, 1, 4, 2, 5).reshape(len(x), self.out_channels, *x.shape[2:])
        return found


class _TanhGELU(nn.GELU):
    def __init__(self) -> None:
        super().__init__(approximate="tanh")


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
