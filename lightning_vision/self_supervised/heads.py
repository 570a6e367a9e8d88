"""Heads that stand behind a backbone while it learns, and go when it has."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

__all__ = ["mlp"]


def mlp(
    widths: Sequence[int],
    norm: bool = True,
    last_norm: bool = False,
    last_bias: bool = True,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> nn.Sequential:
    """Linear layers with batch norm and an activation between them.

    Args:
        widths: Numbers of features from the first layer's input to the last one's output, at least two.
        norm: Whether batch norms stand before the activations; a layer before one has no bias.
        last_norm: Whether one without scale and shift stands behind the last layer.
        last_bias: Whether a last layer without norm has a bias.
        activation: Makes what stands between two layers, ReLU by default.
    """
    layers = nn.Sequential()
    last = len(widths) - 2
    for number, (before, after) in enumerate(pairwise(widths)):
        normed = last_norm if number == last else norm
        layers.append(nn.Linear(before, after, bias=not normed and (number < last or last_bias)))
        if number < last:
            layers.extend([*([nn.BatchNorm1d(after)] if norm else []), activation()])
        elif last_norm:
            layers.append(nn.BatchNorm1d(after, affine=False))
    return layers
