"""Maxout: its limits by hand, the convolution against a loop, the constraint, digits."""

import re
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.nn.functional import conv2d, linear

from lightning_vision.backbones.maxout import MaxoutConv2d, MaxoutLinear, MaxoutNet, max_norm_, maxout


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_row_212(fit_digits: Callable[..., tuple[float, float]]) -> None:
    x = noise(50, 5)
    w = noise(1, 5)
    plain = MaxoutLinear(5, 3, num_pieces=1)

    torch.testing.assert_close(plain(x), linear(x, plain.linear.weight, plain.linear.bias))

    two = MaxoutLinear(5, 1, num_pieces=2, bias=False)
    two.linear.weight.data = torch.cat([w, 0 * w])
    torch.testing.assert_close(two(x), linear(x, w).relu())
    two.linear.weight.data = torch.cat([w, -w])
    torch.testing.assert_close(two(x), linear(x, w).abs())

    layer = MaxoutLinear(5, 4, num_pieces=3)
    left, right = noise(200, 5), noise(400, 5)[200:]
    assert (layer((left + right) / 2) <= (layer(left) + layer(right)) / 2 + 1e-6).all()
    assert (layer((left + right) / 2) < (layer(left) + layer(right)) / 2 - 1e-2).any()

    convolution = MaxoutConv2d(2, 3, 3, num_pieces=4, stride=2, padding=1)
    image = noise(2, 2, 7, 9)
    weight, bias = convolution.conv.weight, convolution.conv.bias
    units = [
        torch.stack([conv2d(image, weight[4 * i + j, None], bias[4 * i + j, None], 2, 1) for j in range(4)]).amax(0)
        for i in range(3)
    ]
    torch.testing.assert_close(convolution(image), torch.cat(units, dim=1))

    network = timm.create_model("maxout_tiny")
    max_norm_(network, 0.5)
    lengths = [
        module.weight.flatten(1).norm(dim=1) for module in network.stages.modules() if isinstance(module, nn.Conv2d)
    ]
    assert torch.cat(lengths).max() <= 0.5

    accuracy, _ = fit_digits(lambda: timm.create_model("maxout_tiny", in_chans=1), epochs=12, lr=1e-2)
    assert accuracy > 0.95


def test_neighbours_along_the_dimension_compete() -> None:
    z = torch.tensor([[1.0, 5.0, -2.0, -3.0], [0.0, -1.0, 7.0, 8.0]])

    assert maxout(z, 2).equal(torch.tensor([[5.0, -2.0], [0.0, 8.0]]))
    assert maxout(z, 2, dim=-1).equal(maxout(z, 2, dim=1))
    assert maxout(z, 2, dim=0).equal(torch.tensor([[1.0, 5.0, 7.0, 8.0]]))
    assert maxout(z, 4).equal(torch.tensor([[5.0], [8.0]]))
    assert maxout(z, 1).equal(z)


def test_the_gradient_reaches_the_largest_piece_only() -> None:
    z = torch.tensor([[1.0, 5.0, 2.0, 2.0]], requires_grad=True)
    maxout(z, 2).sum().backward()

    assert z.grad.equal(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))


def test_linear_layers_take_any_leading_dimensions() -> None:
    layer = MaxoutLinear(5, 4, num_pieces=3)
    x = noise(2, 3, 5)

    assert layer(x).shape == (2, 3, 4)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))


def test_the_constraint_shrinks_long_weights_and_leaves_the_rest() -> None:
    layer = MaxoutLinear(2, 1, num_pieces=2)
    layer.linear.weight.data = torch.tensor([[3.0, 4.0], [0.6, 0.8]])
    bias = layer.linear.bias.clone()
    other = nn.Linear(2, 2)
    untouched = other.weight.data.fill_(9).clone()
    max_norm_(nn.Sequential(layer, other), 2.0)

    torch.testing.assert_close(layer.linear.weight.data, torch.tensor([[1.2, 1.6], [0.6, 0.8]]))
    assert layer.linear.weight[1].equal(torch.tensor([0.6, 0.8]))
    assert layer.linear.bias.equal(bias)
    assert other.weight.equal(untouched)


def test_the_constraint_holds_after_each_optimizer_step() -> None:
    network = timm.create_model("maxout_tiny")
    optimizer = torch.optim.SGD(network.parameters(), lr=10.0)
    optimizer.register_step_post_hook(lambda *_: max_norm_(network, 1.9))
    network(noise(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    convolutions = [module for module in network.stages.modules() if isinstance(module, nn.Conv2d)]

    assert max(module.weight.flatten(1).norm(dim=1).max() for module in convolutions) <= 1.9 + 1e-6
    assert min(module.weight.flatten(1).norm(dim=1).max() for module in convolutions) > 1.8


def test_dropout_stands_before_each_stage_and_before_the_classifier() -> None:
    network = MaxoutNet(drop_rate=0.5, drop_input_rate=0.2)
    rates = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]

    assert rates == [0.2, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: maxout(torch.zeros(2, 5), 2), "maxout: 5 values along dimension 1 do not split into 2 pieces"),
        (lambda: max_norm_(nn.Linear(2, 2), 1.0), "max_norm_ found no MaxoutLinear or MaxoutConv2d in Linear"),
        (lambda: max_norm_(MaxoutLinear(2, 2), 0.0), "max_norm_: max_col_norm must be positive, got 0.0"),
        (
            lambda: MaxoutNet(widths=(8, 8)),
            "MaxoutNet: widths, num_pieces and kernel_sizes need one value a stage, got 2, 3 and 3",
        ),
    ],
)
def test_refusals(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
