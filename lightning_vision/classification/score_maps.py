"""What a classifier says of every place of an image: its scores before they are pooled.

Yun et al. 2021, arXiv:2101.05022, section 3.1. Letters: B images, C channels, K classes, h and w cells of a map.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["score_maps"]


def score_maps(network: nn.Module, images: Tensor) -> Tensor:
    """A network's class scores in every cell of its last maps, whose mean is its answer.

    The linear layer behind the mean is applied to each cell, as a convolution of 1x1, in the place of the mean.

    Args:
        network: One of timm's or this project's, in evaluation mode, that averages maps and classifies them by one
            linear layer, as ResNet, EfficientNet, DenseNet and Swin do.
        images: Normalised, `(B, C, H, W)`.

    Returns:
        Scores before the softmax, float32 `(B, K, h, w)`.

    Raises:
        ValueError: the network does not say what its maps and its classifier are, or has something else between them.

    Example:
        >>> import torch
        >>> from lightning_vision import backbones
        >>> network = backbones.create("resnet8_cifar", num_classes=10, in_channels=1).eval()
        >>> score_maps(network, torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10, 2, 2])

    Reference: Yun et al. 2021, arXiv:2101.05022
    """
    timms: Any = network
    kind = type(network).__name__
    if not (hasattr(network, "forward_features") and hasattr(network, "get_classifier")):
        raise ValueError(
            f"{kind} has no `forward_features` and `get_classifier`, so nothing tells its scores before pooling; give "
            "a network of timm's or of this project, such as resnet50"
        )
    classifier = timms.get_classifier()
    kernel = getattr(classifier, "kernel_size", None)
    if not (isinstance(classifier, nn.Linear) or (isinstance(classifier, nn.Conv2d) and kernel == (1, 1))):
        raise ValueError(
            f"{kind} classifies by a {type(classifier).__name__} and not by one linear layer, so its cells have no "
            "scores; give another, such as resnet50"
        )
    features: Tensor = timms.forward_features(images)
    if features.ndim == 4 and getattr(network, "output_fmt", "NCHW") == "NHWC":
        features = features.permute(0, 3, 1, 2)
    weight, bias = classifier.weight, classifier.bias
    if features.ndim != 4 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{kind} classifies {weight.shape[1]} numbers and its features are {tuple(features.shape)}, which are no "
            "maps of these; give a network that averages maps, such as resnet50"
        )
    return F.conv2d(features, weight.view(*weight.shape[:2], 1, 1), bias).float()
