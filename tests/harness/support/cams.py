"""Small networks for class activation maps, and the maps that the grad-cam package makes of them."""

from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from lightning_vision.inspection.layers import find_layer

__all__ = ["LAYERS", "alike", "network", "package_maps"]

LAYERS = {"cnn": "layer2", "vit": "blocks.1.norm1"}
"""Of each `network`, a layer whose gradient differs from place to place."""


def network(kind: str, side: int = 32, patch: int = 8, certainty: float = 30.0) -> nn.Module:
    """An untrained ResNet-18, or a transformer of two blocks, of five classes, in eval mode.

    Args:
        kind: `cnn` or `vit`.
        side: Of the images, pixels.
        patch: Side of the transformer's patches, pixels.
        certainty: What the weights of the classifier are multiplied with, for fresh ones give logits near 0.
    """
    torch.manual_seed(0)
    if kind == "cnn":
        model = timm.create_model("resnet18", num_classes=5, zero_init_last=False)
    else:
        settings = {"img_size": side, "patch_size": patch, "embed_dim": 48, "depth": 2, "num_heads": 3}
        model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **settings)
    with torch.no_grad():
        model.get_classifier().weight.mul_(certainty)
    return model.eval()


def package_maps(kind: Any, model: nn.Module, layer: str, images: Tensor, classes: list[int]) -> NDArray[Any]:
    """Maps `(B, H, W)` of a class of the package, each divided by its maximum."""

    def folded(tokens: Tensor) -> Tensor:
        side = int(tokens.shape[1] ** 0.5)
        return tokens[:, -(side**2) :].transpose(1, 2).unflatten(2, (side, side))

    fold = folded if "blocks" in layer else None
    targets = [ClassifierOutputTarget(it) for it in classes]
    return kind(model, [find_layer(model, layer)], reshape_transform=fold)(images, targets)


def alike(ours: Tensor, theirs: NDArray[Any]) -> float:
    """Least correlation over the images of two stacks of maps `(B, H, W)`."""
    return min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(ours.numpy(), theirs, strict=True))
