"""MAE: a transformer sees a quarter of an image's patches, and a small one behind it tells the rest.

Letters: B images, N patches, V of them visible, K class and register tokens, D features of a token, P numbers of a
patch.
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from .masked import MaskedLearner, masked_mean
from .patches import normalise_patches, patchify, unpatchify

__all__ = ["MAE", "MAEDecoder", "encode_visible", "mae_loss"]


def encode_visible(vit: VisionTransformer, image: Tensor, kept: Tensor) -> Tensor:
    """What timm's `forward_features` gives when nothing but some patches ever was there.

    Args:
        vit: The transformer.
        image: `(B, C, H, W)`.
        kept: The patches that are seen, int64 `(B, V)`, counted row by row.

    Returns:
        Tokens `(B, K + V, D)`, in the order of `kept` behind class and register tokens.
    """
    tokens = vit._pos_embed(vit.patch_embed(image))
    first, patches = tokens[:, : vit.num_prefix_tokens], tokens[:, vit.num_prefix_tokens :]
    seen = patches.gather(1, kept[:, :, None].expand(-1, -1, patches.shape[2]))
    features: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([first, seen], 1))))
    return features


def mae_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of hidden patches, over all numbers in them.

    Args:
        prediction: `(B, N, P)`.
        target: `(B, N, P)`.
        mask: bool `(B, N)`, True where hidden; what is visible has no part in it.
    """
    return masked_mean((prediction - target).square(), mask[:, :, None])


class MAEDecoder(nn.Module):
    """Blocks that put a token in the place of each hidden patch and predict all patches.

    Args:
        in_dim: Width of the encoder's tokens.
        out_dim: P.
        grid: Rows and columns of patches.
        prefix: K.
        dim: D, a multiple of 4 and of `heads`.
        depth: Blocks.
        heads: Heads of a block.
        learned: Learn the positions; otherwise they are sines and cosines.

    Raises:
        ValueError: `dim` is not such a multiple, or a number is below 1.

    Shape:
        tokens `(B, K + V, in_dim)`, kept int64 `(B, V)`; patches `(B, N, P)`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        grid: tuple[int, int],
        prefix: int,
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        learned: bool = False,
    ) -> None:
        super().__init__()
        if min(dim, depth, heads) < 1 or dim % 4 or dim % heads:
            raise ValueError(
                f"MAE: a decoder of decoder_dim={dim}, decoder_depth={depth} and decoder_heads={heads}; give numbers "
                "above 0, a decoder_dim that is a multiple of 4 and of decoder_heads"
            )
        self.prefix = prefix
        norm: Any = partial(nn.LayerNorm, eps=1e-6)
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(sine_positions(grid, prefix, dim), requires_grad=learned)
        if learned:
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))
        self.norm = norm(dim)
        self.head = nn.Linear(dim, out_dim)
        self.apply(_xavier)

    def no_weight_decay(self) -> set[str]:
        """What weight decay spares besides norms and biases."""
        return {"mask_token", "positions"}

    def forward(self, tokens: Tensor, kept: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        first, seen = tokens[:, : self.prefix], tokens[:, self.prefix :]
        hidden = self.mask_token.to(tokens.dtype).expand(len(tokens), self.positions.shape[1] - self.prefix, -1)
        patches = hidden.scatter(1, kept[:, :, None].expand_as(seen), seen)
        tokens = self.norm(self.blocks(torch.cat([first, patches], 1) + self.positions))
        prediction: Tensor = self.head(tokens[:, self.prefix :])
        return prediction


def sine_positions(grid: tuple[int, int], prefix: int, dim: int) -> Tensor:
    """Sines and cosines of row and column, `(1, K + N, dim)`, 0 for class and register tokens; 4 divides `dim`."""
    patches = build_sincos2d_pos_embed(list(grid), dim)
    return torch.cat([torch.zeros(prefix, dim), patches])[None]


class MAE(MaskedLearner):
    """Predicts the hidden three quarters of an image's patches from the visible one, which is all its encoder sees.

    Logs `loss` and nothing else. The encoder's cost falls with the share that is hidden; what stands behind its patches
    in timm's network (`fc_norm`, attention pooling) is not trained. A backbone given by name and without weights starts
    as the paper's does, with Xavier's numbers.

    Args:
        mask_ratio: Share of the patches that is hidden, above 0 and below 1.
        norm_targets: Predict each patch less its mean and over its standard deviation. Turn it off where patches show
            nothing but noise, which it makes as large as all else.
        decoder_dim: Width of the decoder, a multiple of 4.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Heads of its blocks.
        positions: `sincos` gives encoder and decoder fixed sines and cosines, where the encoder is given by name;
            one that starts from weights keeps its own, fixed. `learned` leaves the encoder's as timm has them.
        **common: As `MaskedLearner`.

    Raises:
        ValueError: as `MaskedLearner`; the network is no `VisionTransformer` of timm's on plain patches, or drops
            patches itself; sizes of the decoder do not fit.

    Example:
        >>> tiny = {"patch_size": 4, "embed_dim": 48, "depth": 2}
        >>> learner = MAE(backbone="vit_tiny_patch16_224", in_channels=1, image_size=24, backbone_settings=tiny)
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 48])

    Reference: He et al. 2022, arXiv:2111.06377

    BibTeX:
        @inproceedings{he2022mae,
          title = {Masked Autoencoders Are Scalable Vision Learners},
          author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick,
                    Ross},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          pages = {15979--15988},
          year = {2022},
          eprint = {2111.06377},
          archivePrefix = {arXiv},
        }
    """

    def __init__(
        self,
        mask_ratio: float = 0.75,
        norm_targets: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        positions: Literal["sincos", "learned"] = "sincos",
        **common: Any,
    ) -> None:
        super().__init__(mask_ratio=mask_ratio, **common)
        if positions not in ("sincos", "learned"):
            raise ValueError(f"MAE: positions is {positions!r}; give 'sincos' or 'learned'")
        vit = self.backbone
        if not isinstance(vit, VisionTransformer) or not isinstance(vit.patch_drop, nn.Identity):
            raise ValueError(
                f"MAE lets timm's VisionTransformer see some patches, and the backbone is a {type(vit).__name__} or "
                "drops patches itself; give a vit_ without patch_drop_rate, or take SimMIM"
            )
        if isinstance(common.get("backbone", ""), str):
            _start(vit, self.grid, positions == "sincos", common.get("pretrained") or common.get("weights"))
        self.norm_targets = norm_targets
        patches, units = math.prod(self.grid), math.prod(self.units)
        self.visible = (units - self.hidden) * (patches // units)
        numbers = self.in_channels * self.patch[0] * self.patch[1]
        sizes = (decoder_dim, decoder_depth, decoder_heads, positions == "learned")
        decoder = MAEDecoder(vit.embed_dim, numbers, self.grid, vit.num_prefix_tokens, *sizes)
        self.network.add_module("decoder", decoder)

    def error(self, image: Tensor, mask: Tensor) -> Tensor:
        target = patchify(image.float(), self.patch)
        if self.norm_targets:
            target = normalise_patches(target)[0]
        return mae_loss(self._patches(image, mask).float(), target, mask)

    def predicted(self, image: Tensor, mask: Tensor) -> Tensor:
        """The whole images; with `norm_targets` means and deviations of the patches are those of `image`."""
        patches = self._patches(image, mask)
        if self.norm_targets:
            _, mean, std = normalise_patches(patchify(image, self.patch))
            patches = patches * std + mean
        return unpatchify(patches, self.patch, self.grid)

    def _patches(self, image: Tensor, mask: Tensor) -> Tensor:
        # False before True, each in their order.
        kept = mask.byte().argsort(dim=1, stable=True)[:, : self.visible]
        vit: Any = self.backbone
        patches: Tensor = self.network.get_submodule("decoder")(encode_visible(vit, image, kept), kept)
        return patches


def _start(vit: VisionTransformer, grid: tuple[int, int], sines: bool, trained: Any) -> None:
    """Give a transformer by name the numbers and the positions that it starts with.

    Raises:
        ValueError: it has no table of positions that sines could fill.
    """
    if not trained:
        vit.apply(_xavier)
        weight = vit.patch_embed.proj.weight
        # Filled apart: of weights that are channels last, `flatten` is a copy.
        weight.data.copy_(nn.init.xavier_uniform_(torch.empty_like(weight.flatten(1))).view(weight.shape))
        for token in (vit.cls_token, vit.reg_token):
            if token is not None:
                nn.init.normal_(token, std=0.02)
    if sines:
        if vit.pos_embed is None or vit.embed_dim % 4:
            raise ValueError("MAE: the backbone has no table of positions, or one whose width 4 does not divide; pass "
                             "positions='learned'")  # fmt: skip
        vit.pos_embed.requires_grad_(False)
        if not trained:
            prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
            vit.pos_embed.data.copy_(sine_positions(grid, prefix, vit.embed_dim))


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
