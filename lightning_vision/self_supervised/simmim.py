"""SimMIM: patches become one learned token, the whole sequence goes through the network, one layer tells the pixels.

Letters: B images, C channels, H and W pixels, N patches, D features.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .masked import MaskedLearner, masked_mean

__all__ = ["PixelHead", "SimMIM", "encode_masked", "simmim_loss"]

Kind = Literal["l1", "l2", "smooth"]
KINDS = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth": F.smooth_l1_loss}


def encode_masked(backbone: Any, image: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """What timm's `forward_features` gives when the embeddings of hidden patches are `token`.

    Args:
        backbone: A network of timm's that begins with `patch_embed`.
        image: `(B, C, H, W)`.
        mask: bool `(B, N)`, True where hidden, row by row.
        token: `(D,)`.
    """

    def hide(embed: nn.Module, given: Any, tokens: Tensor) -> Tensor:
        return token.to(tokens.dtype).where(mask.view(*tokens.shape[:-1], 1), tokens)

    handle = backbone.patch_embed.register_forward_hook(hide)
    try:
        features: Tensor = backbone.forward_features(image)
    finally:
        handle.remove()
    return features


def simmim_loss(prediction: Tensor, target: Tensor, hidden: Tensor, kind: Kind = "l1") -> Tensor:
    """The error of hidden pixels over their number and that of channels (equation 1).

    Args:
        prediction: `(B, C, H, W)`.
        target: `(B, C, H, W)`.
        hidden: bool `(B, 1, H, W)`; what is visible has no part in it.
        kind: `l1`: absolute, `l2`: squared, `smooth`: squared and halved below 1, absolute less a half above.
    """
    return masked_mean(KINDS[kind](prediction, target, reduction="none"), hidden)


class PixelHead(nn.Module):
    """The token of hidden patches, and 1 x 1 convolutions whose channels become pixels.

    Args:
        token_dim: Width of the embeddings of patches.
        in_dim: Width of the last map, D.
        channels: C.
        scale: Pixels of the prediction to one place of the map, on each side.
        depth: Convolutions; between them stands GELU.
    """

    def __init__(self, token_dim: int, in_dim: int, channels: int, scale: int, depth: int = 1) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(token_dim), std=0.02))
        inner = [layer for _ in range(depth - 1) for layer in (nn.Conv2d(in_dim, in_dim, 1), nn.GELU())]
        self.layers = nn.Sequential(*inner, nn.Conv2d(in_dim, channels * scale**2, 1), nn.PixelShuffle(scale))

    def forward(self, features: Tensor) -> Tensor:
        pixels: Tensor = self.layers(features)
        return pixels


class SimMIM(MaskedLearner):
    """Predicts the pixels of hidden squares by one layer behind a network that sees the whole grid of patches.

    Logs `loss` and nothing else. Any network of timm's that begins with plain patches: ViT, DeiT, BEiT, EVA, Swin.
    What stands behind its patches (`fc_norm`, attention pooling) is not trained, and nothing asks the class token of a
    ViT anything: take `global_pool: avg` for features.

    Args:
        mask_ratio: Share of the squares that is hidden, above 0 and below 1.
        mask_patch_size: Side of a square, pixels: a multiple of the network's patches that divides the image.
        loss: `l1`, `l2` or `smooth`, see `simmim_loss`.
        head_depth: Layers of the head; the paper's 1 is as good as more.
        target_stride: Pixels of the image, on each side, that one of the target is the mean of; 1 is full resolution.
            Divides the network's stride and `mask_patch_size`.
        **common: As `MaskedLearner`.

    Raises:
        ValueError: as `MaskedLearner`; the image is no multiple of the network's stride; a setting outside its range.

    Example:
        >>> tiny = {"patch_size": 4, "embed_dim": 48, "depth": 2}
        >>> learner = SimMIM(
        ...     mask_patch_size=4, backbone="vit_tiny_patch16_224", in_channels=1, image_size=24, backbone_settings=tiny
        ... )
        >>> learner.features(torch.zeros(2, 1, 24, 24)).shape
        torch.Size([2, 48])

    Reference: Xie et al. 2022, arXiv:2111.09886

    BibTeX:
        @inproceedings{xie2022simmim,
          title = {SimMIM: A Simple Framework for Masked Image Modeling},
          author = {Xie, Zhenda and Zhang, Zheng and Cao, Yue and Lin, Yutong and Bao, Jianmin and Yao, Zhuliang and
                    Dai, Qi and Hu, Han},
          booktitle = {Conference on Computer Vision and Pattern Recognition},
          pages = {9643--9653},
          year = {2022},
          eprint = {2111.09886},
          archivePrefix = {arXiv},
        }
    """

    def __init__(
        self,
        mask_ratio: float = 0.6,
        mask_patch_size: int = 32,
        loss: Kind = "l1",
        head_depth: int = 1,
        target_stride: int = 1,
        **common: Any,
    ) -> None:
        super().__init__(mask_ratio=mask_ratio, mask_patch_size=mask_patch_size, **common)
        if loss not in KINDS:
            raise ValueError(f"SimMIM: loss is {loss!r}; give one of {', '.join(KINDS)}")
        body: Any = self.backbone
        stride = _stride(body, self.patch)
        if stride[0] != stride[1] or any(side % stride[0] for side in self.image_size):
            raise ValueError(
                f"SimMIM: the backbone's last map has a stride of {stride} pixels, which does not divide the image's "
                f"{self.image_size}; choose image_size, or patch_size and depths in backbone_settings, so that it does"
            )
        if target_stride < 1 or stride[0] % target_stride or mask_patch_size % target_stride:
            raise ValueError(
                f"SimMIM: target_stride is {target_stride}; give a divisor of the backbone's stride {stride[0]} and of "
                f"mask_patch_size {mask_patch_size}"
            )
        if head_depth < 1:
            raise ValueError(f"SimMIM: head_depth is {head_depth}; give at least 1 layer")
        self.loss, self.target_stride = loss, target_stride
        embedded: int = body.patch_embed.proj.out_channels
        scale = stride[0] // target_stride
        self.network.add_module("head", PixelHead(embedded, body.num_features, self.in_channels, scale, head_depth))

    def error(self, image: Tensor, mask: Tensor) -> Tensor:
        target, hidden = image.float(), self.hidden_pixels(mask)
        if (stride := self.target_stride) > 1:
            target, hidden = F.avg_pool2d(target, stride), hidden[:, :, ::stride, ::stride]
        return simmim_loss(self._pixels(image, mask).float(), target, hidden, self.loss)

    def predicted(self, image: Tensor, mask: Tensor) -> Tensor:
        stride = self.target_stride
        return self._pixels(image, mask).repeat_interleave(stride, 2).repeat_interleave(stride, 3)

    def _pixels(self, image: Tensor, mask: Tensor) -> Tensor:
        head: Any = self.network.get_submodule("head")
        features = encode_masked(self.backbone, image, mask, head.mask_token)
        if features.ndim == 3:
            features = features[:, getattr(self.backbone, "num_prefix_tokens", 0) :].unflatten(1, self.grid)
        pixels: Tensor = head(features.permute(0, 3, 1, 2))
        return pixels


def _stride(backbone: Any, patch: tuple[int, int]) -> tuple[int, int]:
    """Pixels of the image to one place of the features, down and across."""
    if getattr(backbone, "output_fmt", "") != "NHWC":
        return patch
    reduction = backbone.feature_info[-1]["reduction"]
    return reduction, reduction
