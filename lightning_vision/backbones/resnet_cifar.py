"""Residual networks of 6n+2 layers for images of 8 to 32 pixels (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ._registry import preset
from ._staged import StagedNetwork
from .shortcut import pad_channels

__all__ = [
    "ResNetCIFAR",
    "resnet8_cifar",
    "resnet14_cifar",
    "resnet20_cifar",
    "resnet32_cifar",
    "resnet44_cifar",
    "resnet56_cifar",
    "resnet110_cifar",
]


class _Unit(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.drop_path(self.bn2(self.conv2(x)))
        return self.act2(x + pad_channels(shortcut, self.channels))


class ResNetCIFAR(StagedNetwork):
    """Residual network of 6n+2 layers: three stages of n two-layer units, 16, 32 and 64 channels wide.

    The shortcut has no parameters (option A): where a stage begins, every second pixel is kept and the new channels
    are zero. Any image of at least 4x4 pixels runs; an 8x8 image meets 8x8, 4x4 and 2x2 maps.

    Args:
        depth: Layers with weights, 6n+2.
        width: Channels of the first stage; doubled by each stage that follows.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        drop_path_rate: Stochastic depth at the last unit, fraction, rising from 0 at the first; neutral 0.
        global_pool: timm's pooling name, or `""` for none.

    Raises:
        ValueError: `depth` is not 6n+2.

    Reference: He et al. 2015, arXiv:1512.03385
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"ResNetCIFAR: depth must be 6n+2 (8, 14, 20, ...), got {depth}")
        units = (depth - 2) // 6
        widths = [width, 2 * width, 4 * width]
        drop_paths = iter(torch.linspace(0, drop_path_rate, 3 * units, device="cpu").tolist())
        stages, channels = nn.Sequential(), width
        for i, out_channels in enumerate(widths):
            stage = nn.Sequential()
            for j in range(units):
                stage.append(_Unit(channels, out_channels, 2 if i > 0 and j == 0 else 1, next(drop_paths)))
                channels = out_channels
            stages.append(stage)
        super().__init__(
            stem=nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            stages=stages,
            final=nn.Sequential(),
            widths=widths,
            reductions=[1, 2, 4],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            head_drop_rate=drop_rate,
            global_pool=global_pool,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


_preset = partial(
    preset,
    ResNetCIFAR,
    reference="He et al. 2015, arXiv:1512.03385",
    first_conv="stem.0",
    features={"out_indices": (0, 1, 2), "flatten_sequential": True},
)
resnet8_cifar = _preset("resnet8_cifar", "ResNet of 8 layers for 8 to 32 pixels, 0.08 M parameters.", depth=8)
resnet14_cifar = _preset("resnet14_cifar", "ResNet of 14 layers for 8 to 32 pixels, 0.17 M parameters.", depth=14)
resnet20_cifar = _preset("resnet20_cifar", "ResNet of 20 layers for 8 to 32 pixels, 0.27 M parameters.", depth=20)
resnet32_cifar = _preset("resnet32_cifar", "ResNet of 32 layers for 8 to 32 pixels, 0.46 M parameters.", depth=32)
resnet44_cifar = _preset("resnet44_cifar", "ResNet of 44 layers for 8 to 32 pixels, 0.66 M parameters.", depth=44)
resnet56_cifar = _preset("resnet56_cifar", "ResNet of 56 layers for 8 to 32 pixels, 0.85 M parameters.", depth=56)
resnet110_cifar = _preset("resnet110_cifar", "ResNet of 110 layers for 8 to 32 pixels, 1.7 M parameters.", depth=110)
