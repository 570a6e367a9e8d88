"""Grad-CAM++ is its paper's equations by hand and by automatic derivatives, and the grad-cam package's maps.

What loggers of maps share is proved beside `GradCAMLogger`; that it does no harm to a run, in `conformance/`.
"""

import pytest
import torch
from pytorch_grad_cam import GradCAMPlusPlus

from lightning_vision.callbacks import GradCAMPlusPlusLogger, grad_cam_plus_plus
from lightning_vision.callbacks.explain.grad_cam import grad_cam_maps
from lightning_vision.callbacks.explain.grad_cam_plus_plus import grad_cam_plus_plus_maps
from support.cams import LAYERS, alike, network, package_maps
from support.data import labelled_images
from support.modules import Plain

# Two channels of one row of two places.
ACTIVATION = torch.tensor([[[[1.0, 3.0]], [[2.0, 0.0]]]])
GRADIENT = torch.tensor([[[[0.5, -2.0]], [[1.0, 1.0]]]])


def drawn(seed=0, channels=6, size=(3, 4), dtype=torch.float32):
    """Maps as after a ReLU and gradients of both signs, of two images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, channels, *size)
    activation = torch.randn(shape, generator=generator, dtype=dtype).relu()
    return activation, torch.randn(shape, generator=generator, dtype=dtype)


def test_the_map_is_the_one_computed_by_hand():
    """Channel 1: the maps sum to 4, alpha is 0.25 / (0.5 + 4 * 0.125) = 0.25 at the first place, the other does not
    count, so w = 0.25 * 0.5. Channel 2: they sum to 2, alpha is 1 / (2 + 2) at both, so w = 0.5.
    """
    expected = 0.125 * torch.tensor([[[1.0, 3.0]]]) + 0.5 * torch.tensor([[[2.0, 0.0]]])

    assert torch.equal(expected, grad_cam_plus_plus_maps(ACTIVATION, GRADIENT))


def wrong(activation, gradient, mutant):
    total = activation.sum((2, 3), keepdim=True)
    if mutant == "the sum over all channels":
        total = total.sum(1, keepdim=True)
    alpha = 1 / (2 + (0 if mutant == "no third derivative" else total) * gradient)
    kept = gradient if mutant == "negative gradients count" else gradient.relu()
    weights = (kept * alpha).mean((2, 3)) if mutant == "a mean" else (kept * alpha).sum((2, 3))
    return (activation * weights[..., None, None]).sum(1).relu()


@pytest.mark.parametrize(
    "mutant", ["the sum over all channels", "no third derivative", "negative gradients count", "a mean"]
)
def test_a_wrong_formula_is_noticed(mutant):
    assert (wrong(ACTIVATION, GRADIENT, mutant) - grad_cam_plus_plus_maps(ACTIVATION, GRADIENT)).abs().max() > 0.05


def test_the_weights_are_those_of_higher_derivatives():
    """Eq. 10 and 5 with Y = exp(S) and a linear S, whose derivatives autograd takes three times, place by place."""
    activation, slopes = drawn(dtype=torch.float64, size=(2, 2))
    activation, slopes = activation[:1], slopes[:1] / 10
    leaf = activation.clone().requires_grad_()
    answer = (leaf * slopes).sum().exp()
    (first,) = torch.autograd.grad(answer, leaf, create_graph=True)
    weights = torch.zeros(1, 6, dtype=torch.float64)
    for channel in range(6):
        for row in range(2):
            for column in range(2):
                place = (0, channel, row, column)
                second = torch.autograd.grad(first[place], leaf, create_graph=True)[0][place]
                third = torch.autograd.grad(second, leaf, retain_graph=True)[0][place]
                alpha = second / (2 * second + activation[0, channel].sum() * third)
                weights[0, channel] += (alpha * first[place].relu()).item()
    expected = torch.einsum("bchw,bc->bhw", activation, weights).relu() / answer.item()

    torch.testing.assert_close(grad_cam_plus_plus_maps(activation, slopes), expected.float(), rtol=1e-5, atol=1e-7)


def test_it_is_a_multiple_of_grad_cam_where_every_channel_speaks_as_loudly():
    """Gradients g_k > 0 the same at all Z places, and the same c = g_k sum A^k for all channels: alpha is 1 / (2 + c)
    everywhere, w_k = Z g_k / (2 + c), and Grad-CAM's weight is g_k.
    """
    activation, _ = drawn()
    loud = 3.0
    slopes = loud / activation.sum((2, 3), keepdim=True)
    gradient = slopes.expand_as(activation)

    expected = 12 / (2 + loud) * grad_cam_maps(activation, gradient)
    torch.testing.assert_close(grad_cam_plus_plus_maps(activation, gradient), expected)
    uneven = gradient * torch.linspace(0.5, 2, 6)[:, None, None]
    off = grad_cam_plus_plus_maps(activation, uneven) / grad_cam_maps(activation, uneven)
    assert off.max() / off.min() > 1.05


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-6])
def test_small_gradients_keep_their_proportions(scale):
    """Eq. 19 divided by the square of the gradient, so nothing is lost; what the package adds to the denominator, 1e-6,
    makes third powers of gradients far below 1e-3.
    """
    activation, gradient = drawn()
    found = grad_cam_plus_plus_maps(activation, scale * gradient) / scale
    weights = gradient.relu() / (2 + activation.sum((2, 3), keepdim=True) * gradient * scale)
    expected = torch.einsum("bchw,bc->bhw", activation, weights.sum((2, 3)))
    theirs = GradCAMPlusPlus.get_cam_weights(None, None, None, None, activation.numpy(), scale * gradient.numpy())
    cubes = torch.einsum("bchw,bc->bhw", activation, torch.from_numpy(theirs)) / scale

    torch.testing.assert_close(found, expected.relu(), rtol=1e-5, atol=1e-6)
    assert torch.allclose(found, cubes, rtol=0.02) is (scale == 1.0)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_maps_are_those_of_the_grad_cam_package(kind):
    model, images = network(kind), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = grad_cam_plus_plus(model, images, LAYERS[kind], torch.tensor([3, 1]))

    assert alike(ours, package_maps(GradCAMPlusPlus, model, LAYERS[kind], images, [3, 1])) > 0.999
    assert alike(ours, package_maps(GradCAMPlusPlus, model, LAYERS[kind], images, [1, 3])) < 0.99


def test_a_denominator_of_zero_counts_nothing():
    activation = torch.tensor([[[[-1.0, -1.0]], [[1.0, 2.0]]]])
    gradient = torch.tensor([[[[1.0, 1.0]], [[0.0, 1.0]]]])

    assert torch.equal(torch.tensor([[[0.2, 0.4]]]), grad_cam_plus_plus_maps(activation, gradient))


def test_the_logger_draws_the_functions_maps():
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    maps, logits = GradCAMPlusPlusLogger(layer="network.2").explain(module, images, 7)

    assert torch.equal(grad_cam_plus_plus(module, images, "network.2", 7), maps)
    assert torch.equal(module(images), logits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "network.9"}, "has no layer 'network.9'"),
        ({"layer": "network.5"}, "no maps of images of 8x8"),
        ({"layer": "network.2", "class_index": 10}, "classes 0 to 9"),
    ],
)
def test_what_cannot_be_explained_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        grad_cam_plus_plus(Plain(), torch.rand(1, 1, 8, 8), **given)
