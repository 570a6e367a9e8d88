"""Operations of layers are those that torch's counter finds, whatever the layer; compiled networks are counted too."""

import csv

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_vision.backbones import create
from lightning_vision.callbacks.hooks._layer_table import (
    FlopCount,
    layer_rows,
    layer_table,
    layers_with_weights,
    write_layer_table,
)

NETWORKS = {
    "residual": (lambda: create("resnet8_cifar", num_classes=10, in_channels=1), (3, 1, 16, 16)),
    "groups, strides and padding": (lambda: nn.Conv2d(8, 12, (3, 5), stride=2, padding=1, groups=4), (2, 8, 13, 11)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2), (2, 6, 5, 7)),
    "one dimension": (lambda: nn.Conv1d(3, 5, 4), (2, 3, 20)),
    "tokens": (lambda: nn.Linear(16, 8), (2, 7, 16)),
    "called twice": (lambda: Twice(), (2, 4)),
}


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)
def test_operations_are_those_of_torchs_counter(make, shape):
    network, images = make(), torch.randn(shape)
    count = FlopCount(network)
    network(images)
    count.stop()
    network(images)  # nobody counts any more
    with FlopCounterMode(display=False) as torchs:
        network(images)

    assert sum(count.flops.values()) == torchs.get_total_flops()


def test_a_transformers_layers_are_counted_and_its_attention_is_not():
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10, depth=1)
    images = torch.randn(2, 3, 32, 32)
    count = FlopCount(network)
    network(images)
    count.stop()
    with FlopCounterMode(display=False, depth=9) as torchs:
        network(images)
    per_operation = torchs.get_flop_counts()["Global"]
    layers = [flops for operation, flops in per_operation.items() if "attention" not in str(operation)]

    assert sum(count.flops.values()) == sum(layers)


def test_compiled_layers_are_counted_once_and_run_as_before(compiler):
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    compiled, images = torch.compile(network, backend="eager"), torch.randn(3, 4)
    before = compiled(images)
    count = FlopCount(compiled)
    counted = compiled(images)
    count.stop()

    assert list(count.flops.values()) == [2 * 3 * 32, 2 * 3 * 16]
    assert torch.equal(before, counted)
    assert torch.equal(before, compiled(images))


def test_layers_have_the_names_of_the_modules_parameters_and_shared_ones_the_first(compiler):
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Embedding(4, 4))
    network[2].weight = network[3].weight = network[0].weight

    assert list(layers_with_weights(network)) == ["0.weight"]
    assert list(layers_with_weights(torch.compile(network, backend="eager"))) == ["_orig_mod.0.weight"]


def test_a_table_of_layers_and_their_sum(tmp_path):
    network = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 5))
    masks = {"0.weight": torch.tensor([[True, False, False, False], [True, False, False, False]])}
    rows = layer_rows(network, masks, {"0.weight": 16, "1.weight": 20})
    write_layer_table(rows, tmp_path / "table.csv")

    assert list(csv.reader((tmp_path / "table.csv").open()))[1:] == [
        ["0", "2x4", "8", "2", "0.750000", "16", "4"],
        ["1", "5x2", "10", "10", "0.000000", "20", "20"],
        ["total", "", "18", "12", "0.333333", "36", "24"],
    ]
    assert layer_table(layer_rows(network, masks)).splitlines()[-1].split() == ["total", "18", "12", "33.33%", "?", "?"]
