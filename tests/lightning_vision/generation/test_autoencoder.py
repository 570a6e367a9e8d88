"""Encoders and decoders: shapes of codes, what counts, how they begin, which sizes work."""

import pytest
import torch
from torch import nn

from lightning_vision.generation.networks.autoencoder import AutoEncoder, CodeAutoEncoder


def small(size=(8, 8), **settings):
    torch.manual_seed(0)
    return AutoEncoder(size, **{"in_channels": 1, "channels": 8, "multiples": (1, 2), "latent_channels": 3} | settings)


def awake(network):
    """With numbers in the place of the zeros that layers begin with."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.5)
    return network


BOTH = pytest.mark.parametrize("settings", [{}, {"latent_dim": 5}], ids=["map", "flat"])


@pytest.mark.parametrize(
    ("size", "multiples", "settings", "code"),
    [
        ((8, 8), (1, 2), {}, (3, 4, 4)),
        ((8, 12), (1, 2, 2), {"latent_channels": 4}, (4, 2, 3)),
        ((8, 12), (1, 2, 2), {"latent_dim": 7}, (7,)),
        ((256, 256), (1, 1, 2, 2), {"latent_channels": 4}, (4, 32, 32)),
        ((5, 7), (1,), {}, (3, 5, 7)),
    ],
)
def test_codes_have_the_shape_that_was_asked_for_and_images_come_back(size, multiples, settings, code):
    network, image = small(size, channels=4, multiples=multiples, **settings), torch.zeros(2, 1, *size)
    mean, log_variance = network.encode(image)

    assert mean.shape == log_variance.shape == (2, *code) and network.code_shape == code
    assert network.decode(mean).shape == network(image).shape == image.shape


@BOTH
def test_every_pixel_and_every_number_of_the_code_counts_and_images_do_not_mix(settings):
    network = awake(small((4, 4), **settings))
    image = torch.randn(2, 1, 4, 4, requires_grad=True)
    mean, log_variance = network.encode(image)
    (slope,) = torch.autograd.grad(mean[0].sum() + log_variance[0].sum(), image, retain_graph=True)
    code = mean.detach().requires_grad_()
    (moved,) = torch.autograd.grad(network.decode(code)[0].square().sum(), code)

    assert (slope[0] != 0).all() and not slope[1].any()
    assert (moved[0] != 0).all() and not moved[1].any()


@BOTH
def test_all_parameters_learn(settings):
    network = awake(small(**settings))
    mean, log_variance = network.encode(torch.randn(2, 1, 8, 8))
    (network.decode(mean).square().sum() + log_variance.square().sum()).backward()

    assert [name for name, it in network.named_parameters() if not it.grad.any()] == []


def test_blocks_begin_as_the_identity():
    network, maps = small(), torch.randn(2, 8, 4, 4)

    assert torch.equal(network.encoder[1](maps), maps)
    assert not torch.equal(awake(network).encoder[1](maps), maps)


def test_a_map_is_of_any_size_that_can_be_halved_and_a_flat_code_of_one():
    image = torch.zeros(1, 1, 12, 16)

    assert small().encode(image)[0].shape == (1, 3, 6, 8)
    with pytest.raises(
        ValueError,
        match=r"^flat codes are of images of 8 x 8 pixels and there came 12 x 16; give latent_dim=None for codes of "
        r"any size$",
    ):
        small(latent_dim=5).encode(image)


def test_sides_that_cannot_be_halved_are_refused_at_once_and_later():
    message = r"^images of 8 x 6 pixels cannot be halved to a 4th; give sides that are multiples of 4, or fewer"

    with pytest.raises(ValueError, match=message):
        small((8, 6), multiples=(1, 1, 1))
    with pytest.raises(ValueError, match=message):
        small(multiples=(1, 1, 1)).encode(torch.zeros(1, 1, 8, 6))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 0}, r"^AutoEncoder: channels is 0; give at least 1$"),
        ({"blocks": 0}, r"^AutoEncoder: blocks is 0; give at least 1$"),
        ({"latent_channels": 0}, r"^AutoEncoder: latent_channels is 0; give at least 1$"),
        ({"latent_dim": 0}, r"^AutoEncoder: latent_dim is 0; give at least 1$"),
        ({"multiples": ()}, r"^AutoEncoder: multiples is \[\]; give a whole number above 0 for each level$"),
        ({"multiples": (1, 0)}, r"^AutoEncoder: multiples is \[1, 0\]; give a whole number above 0 for each level$"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_log_variances_stay_where_exp_is_a_number():
    network = small(latent_dim=2)
    nn.init.constant_(network.to_code[1].bias, 1e4)
    high = network.encode(torch.zeros(1, 1, 8, 8))[1]
    nn.init.constant_(network.to_code[1].bias, -1e4)

    assert high.exp().isfinite().all() and (high > 10).all()
    assert (network.encode(torch.zeros(1, 1, 8, 8))[1].exp() > 0).all()


def test_codes_of_codes_are_as_wide_and_see_their_input_at_the_end():
    torch.manual_seed(0)
    network, code = CodeAutoEncoder(dim=3, width=8), torch.randn(2, 3)
    mean, log_variance = network.encode(code)
    for layer in network.encoder.layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)

    assert mean.shape == log_variance.shape == network.decode(mean).shape == code.shape
    assert not torch.equal(network.encode(code)[0][0], network.encode(code)[0][1])
    with pytest.raises(ValueError, match=r"^CodeAutoEncoder: dim, width, depth are 3, 0, 3; give at least 1 of each$"):
        CodeAutoEncoder(3, 0)
