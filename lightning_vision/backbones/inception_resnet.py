"""Inception-ResNet-v2 with a residual scale that can be set."""

from typing import Any

from timm.models.inception_resnet_v2 import InceptionResnetV2

__all__ = ["ScaledInceptionResNet"]


class ScaledInceptionResNet(InceptionResnetV2):
    """Inception-ResNet-v2 whose residuals are all scaled by one factor before they are added.

    timm's `inception_resnet_v2` has the authors' 0.17, 0.10 and 0.20 for its three kinds of block. The last one, which
    no ReLU follows, is not scaled here either.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the image.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        residual_scale: Factor on each residual, >= 0; the paper's are 0.1 to 0.3, which keep wide networks from dying
            early in training. 0 leaves each block its shortcut and ReLU, 1 is unscaled.

    Shape:
        `(B, in_channels, H, W)` to `(B, num_classes)`; H and W from 75 pixels, designed for 299.

    Raises:
        ValueError: `residual_scale` is negative.

    Example:
        >>> with torch.device("meta"):
        ...     network = ScaledInceptionResNet(num_classes=5, residual_scale=0.1)
        >>> network.repeat[0].scale
        0.1

    Reference: Szegedy et al. 2016, arXiv:1602.07261
    """

    def __init__(
        self, num_classes: int = 1000, in_channels: int = 3, drop_rate: float = 0.0, residual_scale: float = 0.1
    ) -> None:
        if residual_scale < 0:
            raise ValueError(f"ScaledInceptionResNet: residual_scale is {residual_scale}; give a factor of at least 0")
        super().__init__(num_classes=num_classes, in_chans=in_channels, drop_rate=drop_rate)
        blocks: list[Any] = [*self.repeat, *self.repeat_1, *self.repeat_2]
        for block in blocks:
            block.scale = residual_scale
