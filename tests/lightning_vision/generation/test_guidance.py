"""Guidance goes from the answer without a label past that with one; labels are dropped image by image."""

import pytest
import torch

from lightning_vision.generation.guidance import drop_labels, guided
from lightning_vision.generation.networks.unet import UNet


def given():
    torch.manual_seed(0)
    network = UNet(1, channels=8, multiples=(1, 2), blocks=1, head_dim=8, num_classes=3).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network, (torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 2]))


def test_row_201_guidance_of_nought_is_conditional_and_of_less_one_is_not():
    network, (x, time, label) = given()

    assert torch.equal(guided(network, 0.0, 3)(x, time, label), network(x, time, label))
    torch.testing.assert_close(guided(network, -1.0, 3)(x, time, label), network(x, time, None))
    assert (network(x, time, label) - network(x, time, None)).abs().max() > 1e-3


def test_guidance_is_the_formula():
    network, (x, time, label) = given()
    told, untold = network(x, time, label), network(x, time, torch.full((2,), 3))

    torch.testing.assert_close(guided(network, 1.5, 3)(x, time, label), 2.5 * told - 1.5 * untold)
    # The mutant of other papers' scale, where 1 is conditional.
    assert (guided(network, 1.5, 3)(x, time, label) - (1.5 * told - 0.5 * untold)).abs().max() > 1e-3


def test_row_201_labels_are_dropped_image_by_image():
    label, uniform = torch.arange(1000) % 10, torch.rand(1000, generator=torch.Generator().manual_seed(0))
    found = drop_labels(label, uniform, 0.2, 10)
    dropped = found == 10

    assert torch.equal(dropped, uniform < 0.2) and torch.equal(found[~dropped], label[~dropped])
    assert torch.equal(drop_labels(label, uniform, 0.0, 10), label)
    assert (drop_labels(label, uniform, 1.0, 10) == 10).all()


def test_nothing_guides_a_network_without_classes():
    with pytest.raises(ValueError, match=r"guidance is 1\.5 and the network was trained without labels; leave"):
        guided(UNet(1, 8, (1,), 1, (), 8), 1.5, 0)
