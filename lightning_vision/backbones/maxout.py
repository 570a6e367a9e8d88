"""Maxout layers, max-norm constraint and small networks (Goodfellow et al. 2013, arXiv:1302.4389, section 2 and 5)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ._registry import preset
from ._staged import StagedNetwork

__all__ = [
    "MaxoutConv2d",
    "MaxoutLinear",
    "MaxoutNet",
    "max_norm_",
    "maxout",
    "maxout_cifar",
    "maxout_mnist",
    "maxout_tiny",
]


def maxout(z: Tensor, num_pieces: int, dim: int = 1) -> Tensor:
    """Largest of each `num_pieces` neighbours along `dim`: h_i = max_j z_ij.

    Args:
        z: Tensor whose size along `dim` is m * num_pieces; piece j of unit i stands at i * num_pieces + j.
        num_pieces: k, the pieces of a unit; 1 is the identity.
        dim: Where units and pieces stand.

    Returns:
        The shape of `z` with m along `dim`. Where pieces are equal, the first one gets the gradient.

    Raises:
        ValueError: the size along `dim` is no multiple of `num_pieces`.

    Reference: Goodfellow et al. 2013, arXiv:1302.4389
    """
    if z.shape[dim] % num_pieces:
        raise ValueError(f"maxout: {z.shape[dim]} values along dimension {dim} do not split into {num_pieces} pieces")
    return z.unflatten(dim, (-1, num_pieces)).max(dim=dim + 1 if dim >= 0 else dim).values


class MaxoutLinear(nn.Module):
    """Linear layer whose every output is the largest of `num_pieces` affine functions.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        num_pieces: k, affine functions an output; 1 is a plain linear layer.
        bias: Add a bias to each piece.

    Reference: Goodfellow et al. 2013, arXiv:1302.4389
    """

    def __init__(self, in_features: int, out_features: int, num_pieces: int = 2, bias: bool = True) -> None:
        super().__init__()
        self.num_pieces = num_pieces
        self.linear = nn.Linear(in_features, out_features * num_pieces, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., out_features)` of `(..., in_features)`."""
        return maxout(self.linear(x), self.num_pieces, dim=-1)


class MaxoutConv2d(nn.Module):
    """Convolution whose every output channel is the largest of `num_pieces` filters at each pixel.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the filters, pixels.
        num_pieces: k, filters a channel; 1 is a plain convolution.
        stride: Step, pixels.
        padding: Zeros around the input, pixels.
        bias: Add a bias to each piece.

    Reference: Goodfellow et al. 2013, arXiv:1302.4389
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_pieces: int = 2,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_pieces = num_pieces
        self.conv = nn.Conv2d(in_channels, out_channels * num_pieces, kernel_size, stride, padding, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, out_channels, H', W')` of `(B, in_channels, H, W)`."""
        return maxout(self.conv(x), self.num_pieces)


@torch.no_grad()
def max_norm_(network: nn.Module, max_col_norm: float) -> None:
    """Shrink the weights of each piece of each maxout layer to length `max_col_norm` at most.

    It works in place. Call it after each optimizer step, for example
    `optimizer.register_step_post_hook(lambda *_: max_norm_(network, 1.9))`. Shorter vectors, biases and all other
    layers are left alone.

    Args:
        network: Module with `MaxoutLinear` or `MaxoutConv2d` layers in it.
        max_col_norm: c, greatest Euclidean length of the weights that reach one piece; the authors use 0.9 on the image
            and 1.9 above.

    Raises:
        ValueError: `max_col_norm` is not positive, or there is no maxout layer.

    Reference: Goodfellow et al. 2013, arXiv:1302.4389
    """
    layers = [module for module in network.modules() if isinstance(module, MaxoutLinear | MaxoutConv2d)]
    if not layers:
        raise ValueError(f"max_norm_ found no MaxoutLinear or MaxoutConv2d in {type(network).__name__}")
    if max_col_norm <= 0:
        raise ValueError(f"max_norm_: max_col_norm must be positive, got {max_col_norm}")
    for layer in layers:
        weight = layer.linear.weight if isinstance(layer, MaxoutLinear) else layer.conv.weight
        weight.copy_(torch.renorm(weight, p=2, dim=0, maxnorm=max_col_norm))


class MaxoutNet(StagedNetwork):
    """Stages of dropout, convolutional maxout and 3x3 max pooling of stride 2, then a linear classifier.

    Args:
        widths: Output channels of each stage.
        num_pieces: k of each stage.
        kernel_sizes: Side of the filters of each stage, pixels, odd.
        num_classes: Width of the logits; 0 leaves the pooled features.
        in_chans: Channels of the image.
        drop_rate: Dropout on the input of each later stage and of the classifier, fraction; the authors have 0.5.
        drop_input_rate: Dropout on the image, fraction; the authors have 0.2.
        global_pool: timm's pooling name, or `""` for none.

    Raises:
        ValueError: the three lists differ in length.

    Differs from the paper: filters are odd with the map kept in size, and the classifier reads the average of the map,
    so that any image of at least 8x8 pixels runs; no fully connected maxout layer before the classifier.

    Reference: Goodfellow et al. 2013, arXiv:1302.4389
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 48, 24),
        num_pieces: Sequence[int] = (2, 2, 4),
        kernel_sizes: Sequence[int] = (7, 7, 5),
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_input_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        if not len(widths) == len(num_pieces) == len(kernel_sizes):
            raise ValueError(
                f"MaxoutNet: widths, num_pieces and kernel_sizes need one value a stage, got {len(widths)}, "
                f"{len(num_pieces)} and {len(kernel_sizes)}"
            )
        stages, channels = nn.Sequential(), in_chans
        for i, (width, pieces, kernel) in enumerate(zip(widths, num_pieces, kernel_sizes, strict=True)):
            unit = nn.Sequential(
                nn.Dropout(drop_rate if i else drop_input_rate),
                MaxoutConv2d(channels, width, kernel, pieces, padding=kernel // 2),
                nn.MaxPool2d(3, 2, padding=1),
            )
            stages.append(nn.Sequential(unit))
            channels = width
        super().__init__(
            stem=nn.Sequential(),
            stages=stages,
            final=nn.Sequential(),
            widths=widths,
            reductions=[2 ** (i + 1) for i in range(len(widths))],
            num_classes=num_classes,
            in_chans=in_chans,
            drop_rate=drop_rate,
            head_drop_rate=drop_rate,
            global_pool=global_pool,
        )
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


_preset = partial(
    preset,
    MaxoutNet,
    reference="Goodfellow et al. 2013, arXiv:1302.4389",
    first_conv="stages.0.0.1.conv",
    features={"out_indices": (0, 1, 2), "flatten_sequential": True},
)
maxout_tiny = _preset(
    "maxout_tiny",
    "Three conv-maxout layers of 3x3 filters for 8 to 32 pixels, 0.07 M parameters.",
    widths=(32, 48, 48),
    num_pieces=(2, 2, 2),
    kernel_sizes=(3, 3, 3),
)
maxout_mnist = _preset(
    "maxout_mnist",
    "Three conv-maxout layers with the widths of the authors' MNIST network, 0.35 M parameters.",
    input_size=(1, 28, 28),
)
maxout_cifar = _preset(
    "maxout_cifar",
    "Three conv-maxout layers with the widths of the authors' CIFAR-10 network, 3.7 M parameters.",
    widths=(96, 192, 192),
    num_pieces=(2, 2, 2),
    kernel_sizes=(7, 7, 5),
)
