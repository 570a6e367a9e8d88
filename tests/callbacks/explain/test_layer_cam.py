"""Layer-CAM by hand, as Grad-CAM where the two must agree, as captum's and the grad-cam package's maps.

What loggers of maps share is proved beside `GradCAMLogger`; that it does no harm to a run, in `conformance/`.
"""

import pytest
import torch
from captum.attr import LayerGradientXActivation
from pytorch_grad_cam import LayerCAM

from lightning_vision.callbacks import LayerCAMLogger, layer_cam
from lightning_vision.callbacks.explain.grad_cam import grad_cam_maps
from lightning_vision.callbacks.explain.layer_cam import layer_cam_maps
from support.cams import LAYERS, alike, network, package_maps
from support.data import labelled_images
from support.modules import Plain

# Three channels of one row of two places; the maps of a transformer may be negative.
ACTIVATION = torch.tensor([[[[1.0, 3.0]], [[2.0, 1.0]], [[-3.0, 1.0]]]])
GRADIENT = torch.tensor([[[[0.5, -2.0]], [[1.0, 1.0]], [[2.0, 3.0]]]])


def drawn():
    """Maps as after a ReLU, of two images, and positive gradients, the same in all places of a channel."""
    generator = torch.Generator().manual_seed(0)
    activation = torch.randn(2, 6, 3, 4, generator=generator).relu()
    return activation, (torch.rand(2, 6, 1, 1, generator=generator) + 0.1).expand_as(activation)


def test_the_map_is_the_one_computed_by_hand():
    """0.5 * 1 + 1 * 2 - 2 * 3 = -3.5, cut off, and 0 * 3 + 1 * 1 + 3 * 1 = 4."""
    assert torch.equal(torch.tensor([[[0.0, 4.0]]]), layer_cam_maps(ACTIVATION, GRADIENT))


@pytest.mark.parametrize(
    "mutant",
    [
        lambda activation, gradient: (gradient * activation).sum(1).relu(),
        lambda activation, gradient: (gradient.relu() * activation).relu().sum(1),
        lambda activation, gradient: (gradient.relu() * activation).sum(1),
        lambda activation, gradient: (gradient.relu().mean((2, 3), keepdim=True) * activation).sum(1).relu(),
    ],
    ids=["negative gradients count", "rectified before the sum", "not rectified", "a weight for all places"],
)
def test_a_wrong_formula_is_noticed(mutant):
    assert (mutant(ACTIVATION, GRADIENT) - layer_cam_maps(ACTIVATION, GRADIENT)).abs().max() > 0.2


def test_it_is_grad_cam_where_gradients_are_positive_and_the_same_everywhere():
    activation, gradient = drawn()
    uneven = gradient * torch.linspace(0.5, 1.5, 4)

    torch.testing.assert_close(layer_cam_maps(activation, gradient), grad_cam_maps(activation, gradient))
    assert (layer_cam_maps(activation, uneven) - grad_cam_maps(activation, uneven)).abs().max() > 0.1
    assert (layer_cam_maps(activation, -gradient) - grad_cam_maps(activation, -gradient)).abs().max() == 0.0


def test_with_positive_gradients_it_is_captums_gradient_times_activation():
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    with torch.no_grad():
        module.network[5].weight.abs_()
    theirs = LayerGradientXActivation(module, module.network[2]).attribute(images, target=3)
    found = layer_cam_maps(*read(module, images))

    torch.testing.assert_close(found, theirs.detach().sum(1).relu())
    assert found.max() > 0


def read(module, images):
    activation = module.network[:3](images).detach().requires_grad_()
    gradient = torch.autograd.grad(module.network[3:](activation)[:, 3].sum(), activation)[0]
    return activation.detach(), gradient


@pytest.mark.parametrize("kind", LAYERS)
def test_the_maps_are_those_of_the_grad_cam_package(kind):
    model, images = network(kind), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = layer_cam(model, images, LAYERS[kind], torch.tensor([3, 1]))

    assert alike(ours, package_maps(LayerCAM, model, LAYERS[kind], images, [3, 1])) > 0.999
    assert alike(ours, package_maps(LayerCAM, model, LAYERS[kind], images, [1, 3])) < 0.99


def test_the_logger_draws_the_functions_maps():
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    maps, logits = LayerCAMLogger(layer="network.2").explain(module, images, 7)

    assert torch.equal(layer_cam(module, images, "network.2", 7), maps)
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
        layer_cam(Plain(), torch.rand(1, 1, 8, 8), **given)


def test_halves_are_multiplied_and_summed_in_float32():
    activation, gradient = torch.full((1, 64, 2, 2), 1e-4).half(), torch.full((1, 64, 2, 2), 1e-4).half()
    expected = 64 * activation[0, 0].float() * gradient[0, 0].float()

    assert torch.allclose(layer_cam_maps(activation, gradient)[0], expected, rtol=1e-5)
