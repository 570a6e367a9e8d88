"""Compact transformers for small data: CCT, CVT and ViT-Lite (Hassani et al. 2021, arXiv:2104.05704)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models import checkpoint
from torch import Tensor, nn

from ._registry import preset
from .cct_layers import CompactBlock, ConvTokenizer, SeqPool, sine_positions

__all__ = [
    "CompactTransformer",
    "cct_2_3x2_32",
    "cct_4_3x2_32",
    "cct_6_3x1_32",
    "cct_6_3x2_32",
    "cct_7_3x1_32",
    "cct_7_3x2_32",
    "cct_14_7x2_224",
    "cvt_6_4_32",
    "cvt_7_4_32",
    "vit_lite_6_4_32",
    "vit_lite_7_4_32",
]


class CompactTransformer(nn.Module):
    """Small vision transformer: convolutional tokens or patches, and SeqPool or a class token.

    With `patch_size=None` and `global_pool="seq"` it is CCT, with a patch size CVT, with a patch size and
    `global_pool="token"` ViT-Lite.

    Args:
        img_size: Side of the training images, pixels; fixes the grid of learnable positions, which is resampled
            (bilinear) for images of another size.
        embed_dim: Size of a token.
        depth: Blocks.
        num_heads: Attention heads.
        mlp_ratio: Hidden over token size in the two-layer network of a block.
        n_conv_layers: Convolutions of the tokenizer, each followed by ReLU and a 3x3 max pooling of stride 2.
        kernel_size: Side of their filters, pixels; their stride is max(1, kernel_size // 2 - 1).
        patch_size: Side of plain patches in the place of the convolutional tokenizer, pixels; None for none.
        pos_emb: `learnable`, `sine` (of the token's index) or `none`.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        proj_drop_rate: Dropout on the tokens, after attention and in the MLP, fraction; the authors have 0.
        attn_drop_rate: Dropout on the attention weights, fraction; the authors have 0.1.
        drop_path_rate: Stochastic depth at the last block, fraction, rising from 0; the authors have 0.1.
        global_pool: `seq`, `token`, `avg` or `""` for all tokens.

    Raises:
        ValueError: `pos_emb` or `global_pool` is unknown, or the tokenizer leaves nothing of an image of `img_size`.

    Reference: Hassani et al. 2021, arXiv:2104.05704
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        embed_dim: int = 256,
        depth: int = 7,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        n_conv_layers: int = 1,
        kernel_size: int = 3,
        patch_size: int | None = None,
        pos_emb: str = "learnable",
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "seq",
    ) -> None:
        super().__init__()
        if pos_emb not in ("learnable", "sine", "none"):
            raise ValueError(f"CompactTransformer: pos_emb must be learnable, sine or none, got {pos_emb!r}")
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.sine = pos_emb == "sine"
        self.tokenizer = ConvTokenizer(in_chans, embed_dim, n_conv_layers, kernel_size, patch_size)
        self.grid = self.tokenizer.grid((img_size, img_size) if isinstance(img_size, int) else img_size)
        self.num_prefix_tokens = int(global_pool == "token")
        tokens = self.num_prefix_tokens + self.grid[0] * self.grid[1]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if self.num_prefix_tokens else None
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim)) if pos_emb == "learnable" else None
        self.pos_drop = nn.Dropout(proj_drop_rate)
        drop_paths = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(
            *(
                CompactBlock(embed_dim, num_heads, mlp_ratio, proj_drop_rate, attn_drop_rate, drop_path)
                for drop_path in drop_paths
            )
        )
        self.norm: nn.Module = nn.LayerNorm(embed_dim)
        self.seq_pool = SeqPool(embed_dim) if global_pool == "seq" else None
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": embed_dim, "reduction": self.tokenizer.reduction} for i in range(depth)
        ]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.2)
        self.reset_classifier(num_classes, global_pool)

    def _embed(self, x: Tensor) -> tuple[Tensor, list[int]]:
        x = self.tokenizer(x)
        size = list(x.shape[-2:])
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.pos_embed is not None:
            position = self.pos_embed
            if size != list(self.grid):
                # Without antialiasing, which ONNX has no operator for.
                position = resample_abs_pos_embed(
                    position, size, list(self.grid), self.num_prefix_tokens, interpolation="bilinear", antialias=False
                )
            x = x + position
        elif self.sine:
            x = x + sine_positions(x.shape[1], x.shape[2]).to(x)
        return self.pos_drop(x), size

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalised tokens `(B, N, embed_dim)` of an image `(B, in_chans, H, W)`."""
        x, _ = self._embed(x)
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing and self.training else block(x)
        return self.norm(x)

    def _indices(self, indices: int | Sequence[int] | None) -> list[int]:
        depth = len(self.blocks)
        if indices is None or isinstance(indices, int):
            return list(range(depth))[-(indices or depth) :]
        return [range(depth)[i] for i in indices]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps `(B, embed_dim, H', W')` after the blocks `indices`, as timm's `features_only` asks for them.

        Args:
            x: Image `(B, in_chans, H, W)`.
            indices: Blocks to report, the last n for a number, all for None.
            norm: Apply the last normalisation to each map.
            stop_early: Skip the blocks after the last one reported.
            output_fmt: `NCHW` for maps, `NLC` for tokens.
            intermediates_only: Return the maps alone, without the final tokens.
        """
        take = self._indices(indices)
        x, size = self._embed(x)
        maps = []
        for i, block in enumerate(self.blocks[: max(take) + 1] if stop_early else self.blocks):
            x = block(x)
            if i in take:
                tokens = (self.norm(x) if norm else x)[:, self.num_prefix_tokens :]
                maps.append(tokens.transpose(1, 2).unflatten(2, size) if output_fmt == "NCHW" else tokens)
        return maps if intermediates_only else (self.norm(x), maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the feature maps after the blocks `indices` do not need; returns the kept indices."""
        take = self._indices(indices)
        self.blocks = self.blocks[: max(take) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `(B, num_classes)` of tokens, or with `pre_logits` the pooled features `(B, embed_dim)`."""
        if self.seq_pool is not None:
            x = self.seq_pool(x)
        elif self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x[:, self.num_prefix_tokens :].mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of an image `(B, in_chans, H, W)`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one, or with 0 classes by none; `global_pool` changes the pooling."""
        if global_pool is not None:
            absent = {"seq": self.seq_pool, "token": self.cls_token, "avg": self.norm, "": self.norm}
            if absent.get(global_pool) is None:
                raise ValueError(
                    f"CompactTransformer: global_pool must be seq, token, avg or empty, and a network built without "
                    f"SeqPool or class token has no use for it; got {global_pool!r}"
                )
            if global_pool != "seq":
                self.seq_pool = None
            self.global_pool = global_pool
        self.num_classes = num_classes
        self.head = _init_linear(nn.Linear(self.embed_dim, num_classes)) if num_classes else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass, to save memory."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Parameters that timm exempts from weight decay besides norms and biases."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """How timm numbers the layers: tokenizer and positions, then blocks, then the pooling and the classifier."""
        return {
            "stem": r"^tokenizer|^pos_embed|^cls_token",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


def _init_linear(layer: nn.Linear) -> nn.Linear:
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


_preset = partial(
    preset,
    CompactTransformer,
    reference="Hassani et al. 2021, arXiv:2104.05704",
    first_conv="tokenizer.layers.0",
    classifier="head",
)


def _size(depth: int, embed_dim: int, num_heads: int, mlp_ratio: float) -> dict[str, Any]:
    features = {"feature_cls": "getter", "out_indices": tuple(range(-min(3, depth), 0))}
    return {
        "features": features,
        "depth": depth,
        "embed_dim": embed_dim,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
    }


_2, _4 = _size(2, 128, 2, 1.0), _size(4, 128, 2, 1.0)
_6, _7 = _size(6, 256, 4, 2.0), _size(7, 256, 4, 2.0)
_14 = _size(14, 384, 6, 3.0)
cct_2_3x2_32 = _preset("cct_2_3x2_32", "CCT-2/3x2 for 8 to 32 pixels, 0.28 M parameters.", n_conv_layers=2, **_2)
cct_4_3x2_32 = _preset("cct_4_3x2_32", "CCT-4/3x2 for 8 to 32 pixels, 0.48 M parameters.", n_conv_layers=2, **_4)
cct_6_3x1_32 = _preset("cct_6_3x1_32", "CCT-6/3x1 for 8 to 32 pixels, 3.23 M parameters.", n_conv_layers=1, **_6)
cct_6_3x2_32 = _preset("cct_6_3x2_32", "CCT-6/3x2 for 8 to 32 pixels, 3.33 M parameters.", n_conv_layers=2, **_6)
cct_7_3x1_32 = _preset("cct_7_3x1_32", "CCT-7/3x1 for 8 to 32 pixels, 3.76 M parameters.", n_conv_layers=1, **_7)
cct_7_3x2_32 = _preset("cct_7_3x2_32", "CCT-7/3x2 for 8 to 32 pixels, 3.85 M parameters.", n_conv_layers=2, **_7)
cct_14_7x2_224 = _preset(
    "cct_14_7x2_224",
    "CCT-14/7x2 for 224 pixels, 22.37 M parameters.",
    img_size=224,
    input_size=(3, 224, 224),
    num_classes=1000,
    n_conv_layers=2,
    kernel_size=7,
    **_14,
)
cvt_6_4_32 = _preset("cvt_6_4_32", "CVT-6/4 for 8 to 32 pixels, 3.19 M parameters.", patch_size=4, **_6)
cvt_7_4_32 = _preset("cvt_7_4_32", "CVT-7/4 for 8 to 32 pixels, 3.72 M parameters.", patch_size=4, **_7)
vit_lite_6_4_32 = _preset(
    "vit_lite_6_4_32", "ViT-Lite-6/4 for 8 to 32 pixels, 3.19 M parameters.", patch_size=4, global_pool="token", **_6
)
vit_lite_7_4_32 = _preset(
    "vit_lite_7_4_32", "ViT-Lite-7/4 for 8 to 32 pixels, 3.72 M parameters.", patch_size=4, global_pool="token", **_7
)
