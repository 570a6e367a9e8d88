"""Scores before pooling: their mean is the network's answer, whatever kind of network averages them."""

import pytest
import timm
import torch
from torch import nn

from lightning_vision import backbones
from lightning_vision.classification.score_maps import score_maps


@pytest.mark.parametrize(
    ("name", "side", "cells"),
    [("resnet8_cifar", 32, 8), ("resnet10t", 64, 2), ("efficientnet_b0", 64, 2), ("swin_s3_tiny_224", 224, 7)],
)
def test_row_26_the_mean_of_the_map_is_the_networks_answer(name: str, side: int, cells: int) -> None:
    torch.manual_seed(0)
    network = backbones.create(name, num_classes=7, in_channels=3).eval()
    nn.init.normal_(network.get_classifier().weight)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        maps = score_maps(network, images)

        assert maps.shape == (2, 7, cells, cells)
        assert torch.allclose(maps.mean((2, 3)), network(images), rtol=1e-4, atol=1e-5)
    assert maps.std((2, 3)).min() > 0


def test_a_convolution_as_classifier_is_applied_as_it_is() -> None:
    network = backbones.create("allcnn_c", num_classes=7, in_channels=3).eval()
    images = torch.randn(2, 3, 32, 32)

    assert torch.allclose(score_maps(network, images).mean((2, 3)), network(images), atol=1e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            nn.Linear(2, 2),
            r"^Linear has no `forward_features` and `get_classifier`, so nothing tells its scores before",
        ),
        (timm.create_model("vit_tiny_patch16_224"), r"^VisionTransformer classifies 192 numbers and its features are "),
        (
            timm.create_model("resnet10t", num_classes=0),
            r"^ResNet classifies by a Identity and not by one linear layer",
        ),
    ],
    ids=["no network of timm's", "tokens", "no classifier"],
)
def test_a_network_without_maps_of_scores_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_maps(network, torch.zeros(1, 3, 224, 224))
