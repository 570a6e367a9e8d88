"""Residual networks that widen at every unit (Han et al. 2016, arXiv:1610.02915)."""

from functools import partial

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ._registry import preset
from ._staged import StagedNetwork
from .shortcut import pad_channels

__all__ = [
    "PyramidNet",
    "pyramid_widths",
    "pyramidnet101_a360",
    "pyramidnet110_a48",
    "pyramidnet110_a84",
    "pyramidnet110_a270",
    "pyramidnet164_a270",
    "pyramidnet200_a240",
    "pyramidnet200_a300",
    "pyramidnet200_a450",
    "pyramidnet236_a220",
    "pyramidnet272_a200",
]

_IMAGENET_UNITS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 200: (3, 24, 36, 3)}


def pyramid_widths(alpha: int, units: int, start: int = 16, rounding: str = "floor") -> list[int]:
    """Widths D_k = start + k * alpha / units for k = 1 .. units, made whole (Eq. 2).

    The fraction is kept from unit to unit and only the result is rounded; adding floors of a step below 1 would never
    widen.

    Args:
        alpha: Channels added over the whole network; 0 keeps the width constant.
        units: N, residual units.
        start: D_0, channels of the stem.
        rounding: `floor` as the paper; `nearest` as the authors' PyTorch code and the weights made with it.

    Raises:
        ValueError: `alpha` is negative or `rounding` unknown.

    Reference: Han et al. 2016, arXiv:1610.02915

    >>> pyramid_widths(alpha=4, units=8)
    [16, 17, 17, 18, 18, 19, 19, 20]
    """
    if alpha < 0 or rounding not in ("floor", "nearest"):
        raise ValueError(
            f"pyramid_widths: alpha must be at least 0 and rounding floor or nearest, got {alpha} and {rounding!r}"
        )
    if rounding == "nearest":
        return [round(start + k * alpha / units) for k in range(1, units + 1)]
    return [start + k * alpha // units for k in range(1, units + 1)]


class _Unit(nn.Module):
    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool, drop_path: float) -> None:
        super().__init__()
        self.out_channels = 4 * width if bottleneck else width
        if bottleneck:
            shapes = [(in_channels, width, 1, 1), (width, width, 3, stride), (width, self.out_channels, 1, 1)]
        else:
            shapes = [(in_channels, width, 3, stride), (width, width, 3, 1)]
        self.body = nn.Sequential()
        for i, (channels, out_channels, kernel, step) in enumerate(shapes):
            self.body.append(nn.BatchNorm2d(channels))
            if i > 0:
                self.body.append(nn.ReLU())
            self.body.append(nn.Conv2d(channels, out_channels, kernel, step, padding=kernel // 2, bias=False))
        self.body.append(nn.BatchNorm2d(self.out_channels))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.shrink = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.body(x)) + pad_channels(self.shrink(x), self.out_channels)


class PyramidNet(StagedNetwork):
    """Pre-activation residual network whose width grows by the same amount at every unit.

    A unit is BN-conv-BN-ReLU-conv-BN (basic) or BN-conv-BN-ReLU-conv-BN-ReLU-conv-BN (bottleneck, four times as wide
    outside as inside), without a first ReLU. Its shortcut has no parameters: 2x2 averages where the map shrinks, zeros
    on the new channels.

    Args:
        depth: Layers with weights. For small images 6n+2 (basic) or 9n+2 (bottleneck); with `imagenet` 18 or 34
            (basic), 50, 101 or 200 (bottleneck).
        alpha: Widening factor, channels added over the whole network.
        bottleneck: Units of 1x1, 3x3, 1x1 convolutions in the place of two 3x3.
        imagenet: Four stages behind a 7x7 stem of 64 channels that shrinks the image by 4; otherwise three stages
            behind a 3x3 stem of 16 channels.
        rounding: `floor` or `nearest`, see `pyramid_widths`.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        drop_path_rate: Stochastic depth at the last unit, fraction, rising from 0 at the first; neutral 0.
        global_pool: timm's pooling name, or `""` for none.

    Raises:
        ValueError: `depth` does not fit the block, or `alpha` or `rounding` are out of range.

    Reference: Han et al. 2016, arXiv:1610.02915
    """

    def __init__(
        self,
        depth: int = 110,
        alpha: int = 48,
        bottleneck: bool = False,
        imagenet: bool = False,
        rounding: str = "floor",
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        units = _units(depth, bottleneck, imagenet)
        channels = start = 64 if imagenet else 16
        widths = iter(pyramid_widths(alpha, sum(units), start, rounding))
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(units), device="cpu").tolist())
        stages = nn.Sequential()
        ends = []
        for i, count in enumerate(units):
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                unit = _Unit(channels, next(widths), stride, bottleneck, next(drop_paths))
                stage.append(unit)
                channels = unit.out_channels
            stages.append(stage)
            ends.append(channels)
        stem = nn.Sequential(nn.Conv2d(in_chans, start, 3, padding=1, bias=False), nn.BatchNorm2d(start))
        if imagenet:
            stem = nn.Sequential(
                nn.Conv2d(in_chans, start, 7, 2, padding=3, bias=False),
                nn.BatchNorm2d(start),
                nn.ReLU(),
                nn.MaxPool2d(3, 2, padding=1),
            )
        super().__init__(
            stem=stem,
            stages=stages,
            final=nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
            widths=ends,
            reductions=[(4 if imagenet else 1) * 2**i for i in range(len(units))],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            head_drop_rate=drop_rate,
            global_pool=global_pool,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _units(depth: int, bottleneck: bool, imagenet: bool) -> tuple[int, ...]:
    if imagenet:
        if depth not in _IMAGENET_UNITS or bottleneck != (depth >= 50):
            raise ValueError(
                "PyramidNet: for ImageNet depth must be 18 or 34 without and 50, 101 or 200 with bottleneck, "
                f"got {depth} with bottleneck={bottleneck}"
            )
        return _IMAGENET_UNITS[depth]
    layers = 9 if bottleneck else 6
    if depth < layers + 2 or (depth - 2) % layers:
        raise ValueError(f"PyramidNet: depth must be {layers}n+2 with bottleneck={bottleneck}, got {depth}")
    return ((depth - 2) // layers,) * 3


def _features(levels: int) -> dict[str, object]:
    return {"out_indices": tuple(range(levels)), "flatten_sequential": True}


_preset = partial(preset, PyramidNet, reference="Han et al. 2016, arXiv:1610.02915", first_conv="stem.0")
_basic = partial(_preset, features=_features(3), depth=110)
_bottleneck = partial(_preset, features=_features(3), bottleneck=True)
_imagenet = partial(
    _preset, features=_features(4), bottleneck=True, imagenet=True, input_size=(3, 224, 224), num_classes=1000
)
pyramidnet110_a48 = _basic("pyramidnet110_a48", "PyramidNet-110 widened by 48, 1.7 M parameters.", alpha=48)
pyramidnet110_a84 = _basic("pyramidnet110_a84", "PyramidNet-110 widened by 84, 3.9 M parameters.", alpha=84)
pyramidnet110_a270 = _basic("pyramidnet110_a270", "PyramidNet-110 widened by 270, 28.5 M parameters.", alpha=270)
pyramidnet164_a270 = _bottleneck(
    "pyramidnet164_a270", "PyramidNet-164 with bottlenecks widened by 270, 27.2 M parameters.", depth=164, alpha=270
)
pyramidnet200_a240 = _bottleneck(
    "pyramidnet200_a240", "PyramidNet-200 with bottlenecks widened by 240, 26.6 M parameters.", depth=200, alpha=240
)
pyramidnet236_a220 = _bottleneck(
    "pyramidnet236_a220", "PyramidNet-236 with bottlenecks widened by 220, 26.8 M parameters.", depth=236, alpha=220
)
pyramidnet272_a200 = _bottleneck(
    "pyramidnet272_a200", "PyramidNet-272 with bottlenecks widened by 200, 26.0 M parameters.", depth=272, alpha=200
)
pyramidnet101_a360 = _imagenet(
    "pyramidnet101_a360", "PyramidNet-101 for ImageNet widened by 360, 42.3 M parameters.", depth=101, alpha=360
)
pyramidnet200_a300 = _imagenet(
    "pyramidnet200_a300", "PyramidNet-200 for ImageNet widened by 300, 62 M parameters.", depth=200, alpha=300
)
pyramidnet200_a450 = _imagenet(
    "pyramidnet200_a450", "PyramidNet-200 for ImageNet widened by 450, 116 M parameters.", depth=200, alpha=450
)
