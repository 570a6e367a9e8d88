"""All-CNN: sizes, only convolutions and ReLU, class maps, pooling replaced in other networks, digits."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn

from lightning_vision.backbones.allcnn import AllCNN
from lightning_vision.backbones.strided import replace_pooling


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_row_195(fit_digits: Callable[..., tuple[float, float]]) -> None:
    """Its second half, guided backpropagation, is proved in `tests/callbacks/explain/test_guided_backprop.py`."""
    network = timm.create_model("allcnn_c").eval()

    assert count(network) == 1_369_738
    for height, width in ((8, 8), (32, 32), (33, 47)):
        assert network(noise(1, 3, height, width)).shape == (1, 10)

    _, loss = fit_digits(lambda: AllCNN(in_chans=1), epochs=40, lr=1e-3, train=slice(0, 64))

    assert loss < 0.1


@pytest.mark.parametrize(
    ("base_model", "parameters"),
    [
        # weights and biases, layer by layer, of table 1 with each pooling layer as a 3x3 convolution
        ("A", 7_296 + 83_040 + 460_992 + 331_968 + 331_968 + 37_056 + 1_930),
        ("B", 7_296 + 9_312 + 83_040 + 460_992 + 37_056 + 331_968 + 331_968 + 37_056 + 1_930),
        ("C", 2_688 + 83_040 + 83_040 + 166_080 + 331_968 + 331_968 + 331_968 + 37_056 + 1_930),
    ],
)
def test_the_parameters_add_up(base_model: str, parameters: int) -> None:
    assert count(AllCNN(base_model)) == parameters


@pytest.mark.parametrize("base_model", ["A", "B", "C"])
def test_there_is_no_pooling_but_the_global_one(base_model: str) -> None:
    network = AllCNN(base_model)
    kinds = {type(module) for module in network.stages.modules()}

    assert kinds == {nn.Sequential, nn.Conv2d, nn.ReLU, nn.Dropout}
    assert [module.stride for module in network.stages.modules() if isinstance(module, nn.Conv2d)].count((2, 2)) == 2


def test_without_padding_a_32_pixel_image_leaves_the_papers_6x6_class_scores() -> None:
    network = AllCNN(last_padding=0, global_pool="").eval()

    assert network(noise(2, 3, 32, 32)).shape == (2, 10, 6, 6)


def test_the_logits_are_the_mean_of_the_class_map() -> None:
    pooled = AllCNN().eval()
    mapped = AllCNN(global_pool="").eval()
    mapped.load_state_dict(pooled.state_dict())
    x = noise(2, 3, 20, 28)

    assert mapped(x).shape == (2, 10, 5, 7)
    torch.testing.assert_close(mapped(x).mean(dim=(2, 3)), pooled(x))


def test_batch_norm_takes_the_place_of_the_bias() -> None:
    network = AllCNN(batch_norm=True)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    assert len(norms) == 8
    assert {module.bias is None for module in network.stages.modules() if isinstance(module, nn.Conv2d)} == {True}


def test_dropout_stands_on_the_image_and_after_each_strided_convolution() -> None:
    network = AllCNN(drop_rate=0.5, drop_input_rate=0.2)
    rates = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout) and module.p}

    assert rates == {"stem.0": 0.2, "stages.0.2.2": 0.5, "stages.1.2.2": 0.5}


def test_an_unknown_base_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^AllCNN: base_model must be A, B or C, got 'D'$"):
        AllCNN("D")


@pytest.mark.parametrize(
    "pool",
    [
        nn.MaxPool2d(2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.AvgPool2d(2),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.AvgPool2d(3, 2),
    ],
)
def test_the_strided_convolution_keeps_the_size_of_the_map(pool: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(1, 6, 3), pool)
    x = noise(2, 1, 11, 14)
    before = network(x).shape

    assert replace_pooling(network, x) == ["1"]
    assert network(x).shape == before
    assert isinstance(network[1][1], nn.ReLU)


def test_with_the_kernel_of_the_mean_the_convolution_is_average_pooling() -> None:
    pool = nn.AvgPool2d(3, 2, padding=1)
    network = nn.Sequential(pool)
    x = noise(2, 5, 9, 9)
    replace_pooling(network, x, activation=None)
    with torch.no_grad():
        network[0][0].weight.copy_(torch.eye(5)[:, :, None, None].expand(5, 5, 3, 3) / 9)

    torch.testing.assert_close(network(x), pool(x))


def test_pooling_is_replaced_inside_other_networks() -> None:
    network = timm.create_model("resnet10t", num_classes=3)
    for module in network.modules():
        if isinstance(module, nn.AvgPool2d):
            module.ceil_mode = False
    running = network.bn1.running_mean.clone()
    replaced = replace_pooling(network, noise(1, 3, 64, 64))

    assert replaced == ["maxpool", "layer2.0.downsample.0", "layer3.0.downsample.0", "layer4.0.downsample.0"]
    assert not any(isinstance(module, nn.MaxPool2d | nn.AvgPool2d) for module in network.modules())
    assert network.bn1.running_mean.equal(running)
    assert network.training
    network(noise(2, 3, 64, 64)).sum().backward()
    assert network.maxpool[0].weight.grad.abs().sum() > 0


def test_a_shared_pooling_layer_becomes_one_shared_convolution() -> None:
    pool = nn.MaxPool2d(2)
    network = nn.Sequential(pool, pool)
    names = replace_pooling(network, noise(1, 4, 8, 8))

    assert names == ["0", "1"]
    assert network[0] is network[1]


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.ReLU()), "Sequential has no MaxPool2d or AvgPool2d to replace"),
        (
            nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)),
            "pooling layer '0' has ceil_mode=True, which no convolution matches; set it to False",
        ),
        (
            nn.Sequential(pool := nn.MaxPool2d(2), nn.Conv2d(4, 6, 1), pool),
            "pooling layer '0' met [4, 6] channels on the example; it must be used with one number of channels to "
            "become a convolution",
        ),
        (
            nn.ModuleDict({"unused": nn.MaxPool2d(2)}),
            "pooling layer 'unused' met no channels on the example; it must be used with one number of channels to "
            "become a convolution",
        ),
    ],
)
def test_replace_pooling_refuses_and_changes_nothing(network: nn.Module, message: str) -> None:
    network.forward = network.forward if isinstance(network, nn.Sequential) else lambda x: x
    before = list(network.modules())
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        replace_pooling(network, noise(1, 4, 8, 8))

    assert list(network.modules()) == before
    assert not any(module._forward_pre_hooks for module in network.modules())
