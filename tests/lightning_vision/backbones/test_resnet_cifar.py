"""ResNet 6n+2: published sizes, the parameter-free shortcut by hand, learning on digits."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from lightning_vision.backbones.resnet_cifar import ResNetCIFAR
from lightning_vision.backbones.shortcut import pad_channels


@pytest.mark.parametrize(
    ("name", "published", "exact"),
    [
        ("resnet20_cifar", 0.27e6, 269_722),
        ("resnet32_cifar", 0.46e6, 464_154),
        ("resnet44_cifar", 0.66e6, 658_586),
        ("resnet56_cifar", 0.85e6, 853_018),
        ("resnet110_cifar", 1.7e6, 1_727_962),
    ],
)
def test_the_parameters_are_those_of_the_papers_table_6(name: str, published: float, exact: int) -> None:
    count = sum(parameter.numel() for parameter in timm.create_model(name).parameters())

    assert count == exact
    assert float(f"{count:.2g}") == published


@pytest.mark.parametrize(("depth", "units"), [(8, 1), (14, 2), (20, 3), (110, 18)])
def test_depth_counts_the_layers_with_weights(depth: int, units: int) -> None:
    network = ResNetCIFAR(depth=depth)

    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
    assert [len(stage) for stage in network.stages] == [units] * 3


def test_a_unit_without_weights_is_its_shortcut() -> None:
    unit = ResNetCIFAR(depth=8).stages[1][0].eval()
    for parameter in unit.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 32, 3, 4)
    for row in range(3):
        for column in range(4):
            expected[:, :16, row, column] = x[:, :, 2 * row, 2 * column].clamp(min=0)

    assert unit(x).equal(expected)


def test_padding_keeps_the_first_channels_and_adds_zeros() -> None:
    x = torch.arange(1.0, 13).reshape(1, 3, 2, 2)
    padded = pad_channels(x, 5)

    assert padded.shape == (1, 5, 2, 2)
    assert padded[:, :3].equal(x)
    assert padded[:, 3:].equal(torch.zeros(1, 2, 2, 2))
    assert pad_channels(x, 3) is x


def test_padding_does_not_take_channels_away() -> None:
    with pytest.raises(ValueError, match=r"^pad_channels only adds channels: got 3, asked for 2$"):
        pad_channels(torch.zeros(1, 3, 2, 2), 2)


@pytest.mark.parametrize("depth", [2, 9, 21])
def test_a_depth_that_is_not_6n_plus_2_is_refused(depth: int) -> None:
    message = re.escape(f"ResNetCIFAR: depth must be 6n+2 (8, 14, 20, ...), got {depth}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        ResNetCIFAR(depth=depth)


def test_stochastic_depth_rises_from_the_first_unit_to_the_last() -> None:
    network = ResNetCIFAR(depth=20, drop_path_rate=0.4)
    rates = [getattr(unit.drop_path, "drop_prob", 0.0) for stage in network.stages for unit in stage]

    assert rates == pytest.approx([0.05 * unit for unit in range(9)], abs=1e-6)


def test_resnet8_reads_digits_after_a_second_of_training(fit_digits: Callable[..., tuple[float, float]]) -> None:
    accuracy, _ = fit_digits(lambda: timm.create_model("resnet8_cifar", in_chans=1), epochs=5, lr=5e-3)

    assert accuracy > 0.97
