"""Networks of generation: what they see, how they start, and that time, label and every pixel count."""

import pytest
import torch
from torch import nn

from lightning_vision.generation.networks.conditions import Conditions, waves
from lightning_vision.generation.networks.dit import DiT
from lightning_vision.generation.networks.unet import UNet

SMALL = {
    "unet": lambda **more: UNet(1, channels=8, multiples=(1, 2), blocks=1, head_dim=8, **{"num_classes": 3} | more),
    "dit": lambda **more: DiT(8, 2, 1, dim=16, depth=2, heads=2, **{"num_classes": 3} | more),
}
BOTH = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def awake(network):
    """With numbers in the place of the zeros that layers begin with."""
    torch.manual_seed(1)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return network.eval()


def given():
    torch.manual_seed(0)
    return torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])


@BOTH
def test_time_label_and_every_pixel_count(make):
    torch.manual_seed(0)
    network = awake(make())
    x, time, label = given()
    found = network(x, time, label)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(network(x, time, label)[0, 0, 0, 0], x)

    assert found.shape == x.shape
    assert (found - network(x, time + 0.1, label)).abs().max() > 1e-3
    assert (found - network(x, time, label.flip(0))).abs().max() > 1e-3
    assert (found - network(x, time, None)).abs().max() > 1e-3
    # The first image's answer depends on all of its pixels and on nothing of the second's.
    assert (slope[0] != 0).all() and not slope[1].any()


@BOTH
def test_no_label_is_the_label_behind_the_last(make):
    network = awake(make())
    x, time, _ = given()

    assert torch.equal(network(x, time, None), network(x, time, torch.full((2,), 3)))


@BOTH
def test_all_parameters_learn(make):
    network = awake(make())
    x, time, label = given()
    network(x, time, label).square().sum().backward()

    assert [name for name, it in network.named_parameters() if it.grad is None or not it.grad.any()] == []


def test_blocks_begin_as_the_identity():
    x, time, label = given()
    unet, dit = SMALL["unet"](), SMALL["dit"]()
    stage, block = unet.middle[0], dit.blocks[0]
    maps, tokens = torch.randn(2, 16, 4, 4), torch.randn(2, 16, 16)

    assert torch.equal(stage(maps, unet.conditions(time, label)), maps)
    assert torch.equal(block(tokens, dit.conditions(time, label)), tokens)
    assert not dit(x, time, label).any()


def test_patches_come_back_to_their_places():
    """A transformer whose tokens are a patch's own pixels answers with the image."""
    dit = DiT(8, 2, 1, dim=4, depth=0, heads=1)
    dit.norm, dit.modulate = nn.Identity(), nn.Linear(4, 8)
    for parameter in dit.modulate.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        dit.positions.zero_()
        dit.embed.weight.copy_(torch.eye(4).view(4, 1, 2, 2))
        dit.embed.bias.zero_()
        dit.end.weight.copy_(torch.eye(4))
        dit.end.bias.zero_()
    image = torch.randn(2, 1, 8, 8)

    torch.testing.assert_close(dit(image, torch.rand(2)), image)


def test_waves_are_those_of_the_angle():
    found = waves(torch.tensor([0.0, 0.5]), 4, longest=100.0)
    angles = torch.tensor([500.0, 50.0])

    assert found[0].tolist() == [1, 1, 0, 0]
    torch.testing.assert_close(found[1], torch.cat([angles.cos(), angles.sin()]), rtol=1e-4, atol=1e-4)


def test_a_big_unet_and_a_small_one_have_the_sizes_that_they_are_asked_for():
    with torch.device("meta"):
        large = UNet(3, 128, (1, 1, 2, 2, 4, 4), attention=(4,))
        assert large(torch.zeros(1, 3, 256, 256), torch.zeros(1)).shape == (1, 3, 256, 256)
    assert UNet(1, 8, (1,), blocks=1, attention=(), head_dim=8)(*given()[:2]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: UNet(attention=(4,)), "UNet: attention names level 4, and there are levels 0 to 3"),
        (lambda: UNet(channels=40), "UNet: head_dim is 64 and level . has 80 channels; give a divisor"),
        (
            lambda: SMALL["unet"]()(torch.zeros(1, 1, 8, 7), torch.zeros(1)),
            "UNet got 8 x 7 pixels and halves its images, so their sides are 2, 4, 6, ...; resize them, or give fewer "
            "`multiples`",
        ),
        (lambda: DiT(patch_size=5), "DiT: patch_size is 5; give a divisor of image_size=32"),
        (lambda: DiT(dim=30), "DiT: dim is 30; give a multiple of 4 and of heads=6"),
        (lambda: SMALL["dit"]()(torch.zeros(1, 1, 8, 7), torch.zeros(1)), "DiT sees 8 x 8 pixels and got 8 x 7; set"),
        (lambda: Conditions(3), "the width of time and label is 3; give an even number"),
        (
            lambda: SMALL["unet"](num_classes=0)(*given()),
            "the network has num_classes=0 and was given labels; build it with num_classes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(act, sentence):
    with pytest.raises(ValueError, match=sentence):
        act()
