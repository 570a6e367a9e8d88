"""Small plain networks, to train on a laptop (He et al. 2015, arXiv:1512.03385, section 3.3)."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from ._registry import preset
from ._staged import StagedNetwork

__all__ = ["PlainNet", "plain8", "plain8_cifar"]


class PlainNet(StagedNetwork):
    """Network of 3x3 convolutions, each with batch norm and ReLU, whose every stage halves the map; no shortcuts.

    The first stage is one convolution, all others are two, of which the first has stride 2. With a first stride of 2 a
    step in the map of stage i is `2 ** i` pixels of the image, i counted from 1, which is what a detector asks for. Any
    image of at least 2x2 pixels runs.

    Args:
        widths: Channels after each stage.
        first_stride: Of the first convolution, pixels; 1 for images of a few dozen pixels.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout before the classifier, fraction; neutral 0.
        global_pool: timm's pooling name, or `""` for none.

    Raises:
        ValueError: `widths` is empty.

    Differs from the paper: far smaller, for a few thousand images of 64 to 256 pixels, and a stem without pooling.

    Reference: He et al. 2015, arXiv:1512.03385
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64, 96),
        first_stride: int = 2,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if not widths:
            raise ValueError("PlainNet: widths is empty; give the channels of at least one stage")
        stages, channels = nn.Sequential(), in_chans
        for number, width in enumerate(widths):
            stride = 2 if number else first_stride
            stages.append(nn.Sequential(_unit(channels, width, stride), *([_unit(width, width, 1)] if number else [])))
            channels = width
        super().__init__(
            stem=nn.Sequential(),
            stages=stages,
            final=nn.Sequential(),
            widths=widths,
            reductions=[first_stride * 2**number for number in range(len(widths))],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            head_drop_rate=drop_rate,
            global_pool=global_pool,
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _unit(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    )


_preset = partial(
    preset,
    PlainNet,
    reference="He et al. 2015, arXiv:1512.03385",
    first_conv="stages.0.0.0",
    features={"out_indices": (0, 1, 2, 3), "flatten_sequential": True},
)
plain8 = _preset(
    "plain8",
    "Plain network of 8 layers, 16 to 96 channels, maps of strides 2, 4, 8 and 16, 0.21 M parameters.",
    input_size=(3, 128, 128),
)
plain8_cifar = _preset(
    "plain8_cifar",
    "Plain network of 8 layers for 16 to 32 pixels, 16 to 128 channels, maps of strides 1 to 8, 0.29 M parameters.",
    widths=(16, 32, 64, 128),
    first_stride=1,
)
