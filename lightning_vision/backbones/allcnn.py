"""The all convolutional networks A, B and C (Springenberg et al. 2014, arXiv:1412.6806, tables 1 and 2)."""

from functools import partial

from torch import nn

from ._registry import preset
from ._staged import StagedNetwork

__all__ = ["AllCNN", "allcnn_a", "allcnn_b", "allcnn_c"]

# (kernel, channels) before each of the two strided convolutions.
_LAYERS = {
    "A": [[(5, 96)], [(5, 192)]],
    "B": [[(5, 96), (1, 96)], [(5, 192), (1, 192)]],
    "C": [[(3, 96), (3, 96)], [(3, 192), (3, 192)]],
}


class AllCNN(StagedNetwork):
    """Network of convolutions and ReLU only: strided ones shrink the map, a 1x1 classifies it.

    It is fully convolutional: any image of at least 4x4 pixels runs, and with `global_pool=""` it returns the map of
    class scores `(B, num_classes, H', W')`, whose mean are the logits.

    Args:
        base_model: `A`, `B` or `C` of the paper's table 1, with the pooling layers replaced as in table 2.
        batch_norm: Normalise before each ReLU; the paper has none.
        last_padding: Pixels around the map that the last 3x3 convolution reads; 0 as in the paper, where a 32x32 image
            leaves 6x6 class scores and anything under 12x12 is too small.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout after each strided convolution, fraction; the paper has 0.5; neutral 0.
        drop_input_rate: Dropout on the image, fraction; the paper has 0.2; neutral 0.
        global_pool: timm's pooling name, or `""` for none.

    Raises:
        ValueError: `base_model` is unknown.

    Differs from the paper: no ReLU on the class scores, because a class whose scores are all negative would get no
    gradient; `last_padding`.

    Reference: Springenberg et al. 2014, arXiv:1412.6806
    """

    def __init__(
        self,
        base_model: str = "C",
        batch_norm: bool = False,
        last_padding: int = 1,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_input_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if base_model not in _LAYERS:
            raise ValueError(f"AllCNN: base_model must be A, B or C, got {base_model!r}")
        channels = in_chans

        def unit(kernel: int, out_channels: int, stride: int = 1, padding: int | None = None) -> nn.Sequential:
            nonlocal channels
            layers: list[nn.Module] = [
                nn.Conv2d(
                    channels,
                    out_channels,
                    kernel,
                    stride,
                    padding=kernel // 2 if padding is None else padding,
                    bias=not batch_norm,
                )
            ]
            if batch_norm:
                layers.append(nn.BatchNorm2d(out_channels))
            channels = out_channels
            return nn.Sequential(*layers, nn.ReLU())

        stages = nn.Sequential()
        for before in _LAYERS[base_model]:
            stage = nn.Sequential(*(unit(*layer) for layer in before))
            stages.append(stage.append(unit(3, before[-1][1], stride=2).append(nn.Dropout(drop_rate))))
        stages.append(nn.Sequential(unit(3, 192, padding=last_padding), unit(1, 192)))
        super().__init__(
            stem=nn.Sequential(nn.Dropout(drop_input_rate)),
            stages=stages,
            final=nn.Sequential(),
            widths=[96, 192, 192],
            reductions=[2, 4, 4],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            head_drop_rate=0.0,
            global_pool=global_pool,
            conv_head=True,
        )
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


_preset = partial(
    preset,
    AllCNN,
    reference="Springenberg et al. 2014, arXiv:1412.6806",
    first_conv="stages.0.0.0",
    features={"out_indices": (0, 1, 2), "flatten_sequential": True},
)
allcnn_a = _preset(
    "allcnn_a", "All-CNN-A for 8 to 32 pixels, 5x5 and 3x3 convolutions, 1.25 M parameters.", base_model="A"
)
allcnn_b = _preset("allcnn_b", "All-CNN-B for 8 to 32 pixels, 1x1 after each 5x5, 1.30 M parameters.", base_model="B")
allcnn_c = _preset(
    "allcnn_c", "All-CNN-C for 8 to 32 pixels, 3x3 convolutions only, 1.37 M parameters.", base_model="C"
)
