"""Plain networks: their size, and one level of a detector each stage."""

import pytest
import timm
import torch
from torch import nn

from lightning_vision.backbones.plain import PlainNet


def test_the_parameters_add_up_layer_by_layer() -> None:
    network = timm.create_model("plain8")
    pairs = [(3, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 96), (96, 96)]
    # weights of a 3x3 convolution, scale and shift of its norm; the classifier
    expected = sum(9 * low * high + 2 * high for low, high in pairs) + 97 * 10

    assert expected == sum(parameter.numel() for parameter in network.parameters())


def test_the_one_for_small_images_begins_at_their_resolution() -> None:
    network = timm.create_model("plain8_cifar", features_only=True, in_chans=1)

    assert network.feature_info.reduction() == [1, 2, 4, 8]
    assert [level.shape[-1] for level in network(torch.zeros(1, 1, 24, 24))] == [24, 12, 6, 3]


def test_chosen_levels_are_built_without_the_layers_behind_them() -> None:
    network = timm.create_model("plain8", features_only=True, out_indices=(0, 1))

    assert network.feature_info.reduction() == [2, 4]
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 3


def test_other_widths_make_other_levels() -> None:
    network = timm.create_model("plain8", features_only=True, widths=(8, 8, 12), out_indices=(1, 2), in_chans=1)

    assert network.feature_info.channels() == [8, 12]
    assert [tuple(level.shape) for level in network(torch.zeros(1, 1, 32, 32))] == [(1, 8, 8, 8), (1, 12, 4, 4)]


def test_no_stages_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^PlainNet: widths is empty; give the channels of at least one stage$"):
        PlainNet(())
