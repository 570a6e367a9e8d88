"""Layers of any network as tokens: where its maps have their channels, and which tokens stand for no patch."""

from typing import Any

import torch
from torch import Size, Tensor, nn

from ..hooks._frozen import part_name
from ..hooks._layer_table import layers_with_weights

__all__ = ["Layout", "last_layers"]


def last_layers(owner: str, network: nn.Module) -> list[str]:
    """Paths of the last two stages or blocks, as a network of timm's lists them; of others, of the last two layers.

    Those are Linear or convolutional, and the very last one, which makes logits, is none of them. Where there is but
    one it stands for both.

    Raises:
        ValueError: There is none.
    """
    for path, part in network.named_modules():
        stages = getattr(part, "feature_info", None)
        if isinstance(stages, list) and stages:
            below = f"{part_name(path)}." if part_name(path) else ""
            return _last_two([f"{below}{it['module']}" for it in stages])
    layers = [part_name(name).removesuffix(".weight") for name in layers_with_weights(network)][:-1]
    if not layers:
        raise ValueError(
            f"{owner}: {type(network).__name__} has no Linear or convolutional layer before its last one; name layers "
            "with student_stages= and teacher_stages=."
        )
    return _last_two(layers)


def _last_two(paths: list[str]) -> list[str]:
    return paths[-2:] if len(paths) > 1 else paths * 2


class Layout:
    """How a network lays out what its layers put out.

    Args:
        owner: Who speaks in a refusal.
        network: Whose layers they are; timm's say themselves where channels are and how many tokens come first that
            stand for no patch, others are taken to have maps `(B, C, H, W)` and no such tokens.
    """

    def __init__(self, owner: str, network: nn.Module) -> None:
        self.owner = owner
        self.channels_last = _said(network, "output_fmt", "NCHW") == "NHWC"
        self.first: int = _said(network, "num_prefix_tokens", 0)

    def tokens(self, features: Tensor) -> Tensor:
        """Maps `(B, C, H, W)` or `(B, H, W, C)`, tokens `(B, N, C)` or vectors `(B, C)` as tokens `(B, N, C)`."""
        if features.ndim == 4:
            return features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)
        return features[:, None] if features.ndim == 2 else features

    def shape(self, shape: Size) -> Size:
        """The shape of the tokens that features of this shape have.

        Raises:
            ValueError: They are neither maps nor tokens nor vectors.
        """
        if len(shape) not in (2, 3, 4):
            raise ValueError(
                f"{self.owner}: a stage puts out {tuple(shape)} for two images; name one that puts out maps "
                "(B, C, H, W), tokens (B, N, C) or vectors (B, C)."
            )
        return self.tokens(torch.empty(shape, device="meta")).shape

    def features(self, tokens: Tensor, shape: Size) -> Tensor:
        """Tokens in the shape of features of which one image has `shape[1:]`; undoes `tokens`."""
        if len(shape) == 4 and not self.channels_last:
            return tokens.transpose(1, 2).reshape(-1, *shape[1:])
        return tokens.reshape(-1, *shape[1:])

    def patches(self, tokens: Tensor) -> Tensor:
        """Tokens without those in front that stand for no patch."""
        return tokens[:, self.first :] if tokens.shape[1] > self.first else tokens


def _said(network: nn.Module, name: str, otherwise: Any) -> Any:
    return next((value for it in network.modules() if (value := getattr(it, name, None)) is not None), otherwise)
