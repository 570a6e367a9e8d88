"""Eigen-CAM is numpy's singular value decomposition up to its sign, exact where the maps have rank one, and classless.

What loggers of maps share is proved beside `GradCAMLogger`; that it does no harm to a run, in `conformance/`.
"""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM
from torch import nn

from lightning_vision.callbacks import EigenCAMLogger, GradCAMLogger, eigen_cam
from lightning_vision.callbacks.explain.eigen_cam import eigen_cam_maps
from support.cams import LAYERS, alike, network, package_maps
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

# More channels than places, and the other way round; both ways are taken.
SHAPES = [(2, 40, 3, 4), (2, 5, 6, 7)]


def drawn(shape):
    """Maps of both signs with a mean above 0."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 0.3


def projected(activation, centre=False, component=0):
    """The projection by numpy's decomposition, before rectification, with a positive mean of A v."""
    found = []
    for maps in activation.double().numpy():
        matrix = maps.reshape(len(maps), -1).T
        shifted = matrix - matrix.mean(0) if centre else matrix
        vector = np.linalg.svd(shifted, full_matrices=False)[2][component]
        found.append(np.sign((matrix @ vector).mean()) * (shifted @ vector).reshape(maps.shape[1:]))
    return torch.from_numpy(np.stack(found)).float()


@pytest.mark.parametrize("component", [0, 1, 3])
@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_row_116_it_is_numpys_decomposition_up_to_the_sign(shape, centre, component):
    activation = drawn(shape)
    expected = projected(activation, centre, component)

    torch.testing.assert_close(eigen_cam_maps(activation, centre, component), expected.relu(), rtol=1e-5, atol=1e-5)
    # The other sign, the other setting and the next component are told apart.
    for wrong in (
        -expected,
        projected(activation, not centre, component),
        projected(activation, centre, component + 1),
    ):
        assert (eigen_cam_maps(activation, centre, component) - wrong.relu()).abs().max() > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_row_116_maps_of_rank_one_give_their_spatial_vector(shape):
    """A = a b^T with a unit b of any sign and an a of positive mean: A v is a, rectified; with centring a less its
    mean. A b that is half as long gives half of it.
    """
    generator = torch.Generator().manual_seed(1)
    place = torch.rand(2, 1, *shape[2:], generator=generator)
    channel = torch.nn.functional.normalize(torch.randn(2, shape[1], 1, 1, generator=generator), dim=1)
    place[:, :, 0, 0] = -0.5

    expected = place[:, 0].relu()
    torch.testing.assert_close(eigen_cam_maps(place * channel), expected)
    torch.testing.assert_close(eigen_cam_maps(place * channel / 2), expected / 2)
    centred = (place - place.mean((2, 3), keepdim=True))[:, 0]
    torch.testing.assert_close(eigen_cam_maps(place * channel, centre=True), centred.relu())
    assert (eigen_cam_maps(place * channel, centre=True) - expected).abs().max() > 0.1


@pytest.mark.parametrize("kind", LAYERS)
def test_row_116_randomising_the_classifier_changes_no_map(kind):
    model, images = network(kind), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before, said = eigen_cam(model, images), model(images)
    with torch.no_grad():
        nn.init.normal_(model.get_classifier().weight)

    assert (model(images) - said).abs().max() > 0.1
    assert torch.equal(before, eigen_cam(model, images))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(()) + 0.5)
    assert not torch.equal(before, eigen_cam(model, images))


def test_row_116_it_runs_without_gradients():
    """The forwards of the maps know no gradient, while Grad-CAM's do."""
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    asked = []
    module.network[0].register_forward_hook(lambda *_: asked.append(torch.is_grad_enabled()))
    expected = eigen_cam(module, images, "network.2")
    with torch.no_grad():
        assert torch.equal(expected, eigen_cam(module, images, "network.2"))
    with torch.inference_mode():
        assert torch.equal(expected, eigen_cam(module, images, "network.2"))
    EigenCAMLogger(layer="network.2").explain(module, images, None)
    assert asked == [False] * 4
    GradCAMLogger(layer="network.2").explain(module, images, None)

    assert asked[-1]


@pytest.mark.parametrize("kind", LAYERS)
def test_the_maps_are_those_of_the_grad_cam_package_which_centres_and_leaves_the_sign_open(kind):
    model, images = network(kind), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    class Turned(EigenCAM):
        def get_cam_image(self, *args):
            return -super().get_cam_image(*args)

    both = [package_maps(it, model, LAYERS[kind], images, [0, 0]) for it in (EigenCAM, Turned)]
    for centre in (True, False):
        ours = eigen_cam(model, images, LAYERS[kind], centre)
        found = [max(alike(ours[i : i + 1], it[i : i + 1]) for it in both) for i in range(2)]

        assert (min(found) > 0.999) is centre


def test_half_precision_gives_maps_in_float32():
    activation = drawn(SHAPES[0])
    found = eigen_cam_maps(activation.bfloat16())

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, eigen_cam_maps(activation), rtol=0.05, atol=0.05)


def test_maps_of_nothing_stay_nothing():
    assert torch.equal(torch.zeros(2, 3, 4), eigen_cam_maps(torch.zeros(2, 40, 3, 4)))


def test_the_logger_draws_the_functions_maps():
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    for given in ({}, {"component": 1}, {"centre": True, "component": 2}):
        maps, logits = EigenCAMLogger(layer="network.2", **given).explain(module, images, 7)

        assert torch.equal(eigen_cam(module, images, "network.2", **given), maps)
        assert torch.equal(module(images), logits)


def test_a_component_that_is_not_there_is_told_in_the_first_validation():
    message = "component is 4, and the layer's maps have 4; give one from 0 to 3"
    with pytest.raises(ValueError, match=message):
        eigen_cam(Plain(), torch.rand(1, 1, 8, 8), "network.2", component=4)
    with pytest.raises(ValueError, match=message):
        quiet_trainer(callbacks=[EigenCAMLogger(component=4)], max_epochs=1).fit(
            Plain(), plain_loader(), plain_loader()
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"component": -1}, "component is -1; give a whole number of at least 0"),
        ({"centre": "no"}, "centre is 'no'; give True or False"),
        ({"layer": "network.2", "samples": 0}, "samples is 0; give a whole number of at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_at_once(given, message):
    with pytest.raises(ValueError, match=f"EigenCAMLogger: {message}"):
        EigenCAMLogger(**given)


def test_an_image_whose_maps_are_not_finite_has_a_map_of_nan():
    activation = torch.rand(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    broken = activation.clone()
    broken[1, 2, 3, 4], broken[2, 0, 0, 0] = torch.nan, torch.inf
    maps = eigen_cam_maps(broken)

    assert torch.equal(maps[0], eigen_cam_maps(activation)[0])
    assert bool(maps[1:].isnan().all())


def test_a_named_layer_is_seen_in_a_network_that_answers_no_logits():
    network = torch.nn.Conv2d(3, 4, 3)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = eigen_cam(torch.nn.Sequential(network), images, layer="0")

    assert maps.shape == (2, 8, 8) and maps.amax() > 0


def test_a_wrong_argument_is_told_with_the_callbacks_name():
    with pytest.raises(TypeError, match=r"EigenCAMLogger.__init__\(\) got an unexpected keyword argument 'smaples'"):
        EigenCAMLogger(smaples=3)
