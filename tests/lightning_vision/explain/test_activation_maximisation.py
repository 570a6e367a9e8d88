"""Activation maximisation: the corner of a linear unit by hand, a trained network, and a model left as it was."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from lightning_vision.explain.activation_maximisation import maximise_activation
from support.modules import small_network


def linear(inputs=16):
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 3))
    network[1].weight.data = torch.randn(3, inputs, generator=generator)
    network[1].bias.data.zero_()
    return network


def test_a_linear_unit_is_raised_to_the_corner_where_its_weights_point():
    network = linear()
    found = maximise_activation(network, [0, 2], size=(1, 4, 4), steps=300, lr=0.3, tv_weight=0, jitter=0)
    corner = (network[1].weight[[0, 2]] > 0).float()

    torch.testing.assert_close(found.images.flatten(1), corner)
    torch.testing.assert_close(found.end, network[1].weight[[0, 2]].clamp_min(0).sum(1))
    # The lowest corner is what the wrong sign would find.
    assert (found.end > network[1].weight[[0, 2]].clamp_max(0).sum(1)).all()


def test_the_corner_is_black_and_white_as_the_model_is_shown_them():
    mean, std = (0.4, 0.2, 0.3), (0.2, 0.25, 0.5)
    network = linear(12)
    found = maximise_activation(
        network, 1, size=(3, 2, 2), steps=300, lr=0.3, tv_weight=0, jitter=0, mean=mean, std=std
    )
    white = torch.tensor([3.0, 3.2, 1.4]).view(3, 1, 1)
    black = torch.tensor([-2.0, -0.8, -0.6]).view(3, 1, 1)
    positive = network[1].weight[1].view(1, 3, 2, 2) > 0

    torch.testing.assert_close(found.images, torch.where(positive, white, black))


def test_every_class_of_a_trained_network_is_raised_and_taken_for_itself(digits_network):
    found = maximise_activation(digits_network, list(range(10)), size=(1, 8, 8), steps=60)

    assert (found.end > found.start).all()
    assert digits_network(found.images).argmax(1).tolist() == list(range(10))
    assert found.images.min() >= 0 and found.images.max() <= 1


def test_a_channel_of_a_layer_is_its_mean_over_places(digits_network, digits):
    found = maximise_activation(digits_network, [3, 5], "2", start=digits[0][:2], steps=20)
    with torch.no_grad():
        maps = [digits_network[:3](it) for it in (digits[0][:2], found.images)]

    for told, map_ in zip((found.start, found.end), maps, strict=True):
        torch.testing.assert_close(told, map_.mean((2, 3))[[0, 1], [3, 5]])
    assert (found.end > found.start).all()


def test_a_channel_of_pooled_tokens_and_of_vectors_is_found():
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    for layer in ("1", "2"):
        found = maximise_activation(pooled, 2, layer, size=(1, 6, 6), steps=5)
        with torch.no_grad():
            torch.testing.assert_close(found.end, pooled[:3](found.images)[:, 2])


def test_priors_make_smoother_images(digits_network):
    rough = maximise_activation(digits_network, 3, size=(1, 8, 8), steps=60, tv_weight=0)
    smooth = maximise_activation(digits_network, 3, size=(1, 8, 8), steps=60, tv_weight=1.0)
    blurred = maximise_activation(digits_network, 3, size=(1, 8, 8), steps=60, tv_weight=0, blur=0.7)

    def roughness(found):
        return float(found.images.diff(dim=3).abs().mean() + found.images.diff(dim=2).abs().mean())

    assert roughness(smooth) < 0.7 * roughness(rough)
    assert roughness(blurred) < 0.7 * roughness(rough)


def test_a_seed_says_everything_and_no_global_stream_moves(digits_network):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first, again, other = (maximise_activation(digits_network, 3, size=(1, 8, 8), steps=5, seed=s) for s in (1, 1, 2))

    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state()[1].tolist(), random.getstate())


def test_a_model_in_training_is_left_as_it_was_also_frozen_and_in_inference_mode():
    network = small_network()
    network[0].requires_grad_(False)
    network[1].eval()
    network[5].weight.grad = torch.ones_like(network[5].weight)
    state = copy.deepcopy(network.state_dict())
    flags = [part.training for part in network.modules()]
    plain = maximise_activation(network, 3, size=(1, 8, 8), steps=3)
    with torch.inference_mode():
        start = torch.full((1, 1, 8, 8), 0.5)
        inside = maximise_activation(network, 3, size=(1, 8, 8), steps=3)
        maximise_activation(network, 3, "2", start=start, steps=1)

    assert torch.equal(plain.images, inside.images)
    assert flags == [part.training for part in network.modules()]
    assert [it.requires_grad for it in network.parameters()] == [False, False, True, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network[5].weight.grad.eq(1).all() and network[0].weight.grad is None
    assert not any(part._forward_hooks for part in network.modules())
    assert start.eq(0.5).all()


def test_a_network_in_half_precision_is_asked_in_its_own_type():
    found = maximise_activation(linear().to(torch.bfloat16), 1, size=(1, 4, 4), steps=20)

    assert found.images.dtype == torch.float32
    assert (found.end > found.start).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel": 9}, "classes 0 to 2"),
        ({"channel": 9, "layer": "1"}, "channels 0 to 2, not"),
        ({"channel": 0, "layer": "2"}, "no layer '2'"),
        ({"channel": []}, "at least one channel"),
        ({"channel": 0, "size": None}, "either size"),
        ({"channel": 0, "start": torch.zeros(1, 1, 4, 4)}, "either size"),
        ({"channel": [0, 1], "size": None, "start": torch.zeros(3, 1, 4, 4)}, "2 channels and 3 images"),
        ({"channel": 0, "size": None, "start": torch.full((1, 1, 4, 4), -2.0)}, "pass the mean and std"),
        ({"channel": 0, "steps": 0}, "steps is 0"),
        ({"channel": 0, "decay": 1.5}, "decay is 1.5 and must be 0 to 1"),
        ({"channel": 0, "std": (0.0,)}, "std"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        maximise_activation(linear(), **{"size": (1, 4, 4), **arguments})
