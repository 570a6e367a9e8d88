"""PyramidNet: widths by hand and by formula, published sizes, the shortcut, parity with pytorchcv."""

import re

import pytest
import timm
import torch
from pytorchcv.models.pyramidnet_cifar import CIFARPyramidNet, get_pyramidnet_cifar
from torch import nn

from lightning_vision.backbones.pyramidnet import PyramidNet, pyramid_widths


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def outside(network: PyramidNet) -> list[int]:
    return [unit.out_channels for stage in network.stages for unit in stage]


def test_row_262() -> None:
    for alpha, published in ((48, 1.7e6), (84, 3.8e6), (270, 28.3e6)):
        with torch.device("meta"):
            network = timm.create_model(f"pyramidnet110_a{alpha}")
        assert count(network) == pytest.approx(published, rel=0.025)
        assert outside(network) == pyramid_widths(alpha, units=54)
        assert outside(network)[-1] == 16 + alpha

    assert set(outside(PyramidNet(depth=20, alpha=0))) == {16}

    unit = PyramidNet(depth=8, alpha=30).stages[1][0].eval()
    for parameter in unit.parameters():
        nn.init.zeros_(parameter)
    x = noise(1, 26, 4, 4)
    means = torch.stack([x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2)) for i in (0, 1) for j in (0, 1)], 1)
    torch.testing.assert_close(unit(x)[0, :26].flatten(1), means)
    assert unit(x)[0, 26:].equal(torch.zeros(10, 2, 2))

    for ours, bottleneck in ((timm.create_model("pyramidnet110_a48"), False), (_bottleneck(), True)):
        theirs = CIFARPyramidNet(
            channels=[[unit.out_channels for unit in stage] for stage in ours.stages],
            init_block_channels=16,
            bottleneck=bottleneck,
        )
        assert _difference(ours, theirs) < 1e-4


def _bottleneck() -> PyramidNet:
    return PyramidNet(depth=29, alpha=10, bottleneck=True)


def _difference(ours: PyramidNet, theirs: nn.Module) -> float:
    # Both register their layers in the order of use, so the states correspond entry by entry.
    state = theirs.state_dict()
    assert [tensor.shape for tensor in ours.state_dict().values()] == [tensor.shape for tensor in state.values()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, tensor in state.items():
            if "num_batches" not in name and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    theirs.load_state_dict(state)
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
    with torch.no_grad():
        expected = theirs.eval()(noise(2, 3, 32, 32))
        return ((ours.eval()(noise(2, 3, 32, 32)) - expected).abs().max() / expected.abs().max()).item()


def test_rounded_to_the_nearest_the_widths_are_those_of_the_authors_pytorch_code() -> None:
    for depth, alpha, bottleneck in ((110, 48, False), (110, 84, False), (272, 200, True)):
        with torch.device("meta"):
            theirs = get_pyramidnet_cifar(10, depth, alpha, bottleneck)
            ours = PyramidNet(depth, alpha, bottleneck, rounding="nearest")
        assert [tensor.shape for tensor in ours.state_dict().values()] == [
            tensor.shape for tensor in theirs.state_dict().values()
        ]


def test_the_widths_by_hand() -> None:
    assert pyramid_widths(alpha=9, units=3) == [19, 22, 25]
    assert pyramid_widths(alpha=4, units=6) == [16, 17, 18, 18, 19, 20]
    assert pyramid_widths(alpha=4, units=6, rounding="nearest") == [17, 17, 18, 19, 19, 20]
    assert pyramid_widths(alpha=0, units=4, start=64) == [64] * 4


def test_floor_counts_no_float_error() -> None:
    # 16 + 9 * (48 / 54) is 23.999999999999996 when summed step by step
    assert pyramid_widths(alpha=48, units=54)[8] == 24


@pytest.mark.parametrize(
    ("name", "depth", "levels"),
    [
        ("pyramidnet110_a270", 110, [(106, 1), (196, 2), (286, 4)]),
        ("pyramidnet164_a270", 164, [(424, 1), (784, 2), (1144, 4)]),
        ("pyramidnet101_a360", 101, [(384, 4), (560, 8), (1564, 16), (1696, 32)]),
    ],
)
def test_depth_counts_the_layers_with_weights(name: str, depth: int, levels: list[tuple[int, int]]) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)

    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth
    assert [(level["num_chs"], level["reduction"]) for level in network.feature_info] == levels


@pytest.mark.parametrize(
    ("bottleneck", "kinds"),
    [
        (False, "BatchNorm2d Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d"),
        (True, "BatchNorm2d Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d"),
    ],
)
def test_a_unit_has_no_first_relu_and_a_last_normalisation(bottleneck: bool, kinds: str) -> None:
    network = PyramidNet(depth=11 if bottleneck else 8, alpha=6, bottleneck=bottleneck)

    assert [type(module).__name__ for module in network.stages[1][0].body] == kinds.split()
    assert [module.stride[0] for module in network.stages[1][0].body if isinstance(module, nn.Conv2d)] == (
        [1, 2, 1] if bottleneck else [2, 1]
    )


def test_the_shortcut_rounds_odd_maps_up_like_the_convolutions() -> None:
    assert PyramidNet(depth=8, alpha=6).eval().forward_features(noise(1, 3, 9, 7)).shape == (1, 22, 3, 2)


def test_the_imagenet_stem_shrinks_by_four() -> None:
    network = PyramidNet(depth=18, alpha=8, imagenet=True, num_classes=3).eval()

    assert network.forward_features(noise(1, 3, 64, 64)).shape == (1, 72, 2, 2)
    assert outside(network) == [65, 66, 67, 68, 69, 70, 71, 72]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 21}, "PyramidNet: depth must be 6n+2 with bottleneck=False, got 21"),
        ({"depth": 112, "bottleneck": True}, "PyramidNet: depth must be 9n+2 with bottleneck=True, got 112"),
        ({"depth": 2}, "PyramidNet: depth must be 6n+2 with bottleneck=False, got 2"),
        (
            {"depth": 50, "imagenet": True},
            "PyramidNet: for ImageNet depth must be 18 or 34 without and 50, 101 or 200 with bottleneck, got 50 with "
            "bottleneck=False",
        ),
        (
            {"alpha": -1},
            "pyramid_widths: alpha must be at least 0 and rounding floor or nearest, got -1 and 'floor'",
        ),
        (
            {"rounding": "up"},
            "pyramid_widths: alpha must be at least 0 and rounding floor or nearest, got 48 and 'up'",
        ),
    ],
)
def test_refusals(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PyramidNet(**settings)
