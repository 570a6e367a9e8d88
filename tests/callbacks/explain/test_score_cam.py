"""Score-CAM by brute force on models whose answer to a masked image is known, and as the grad-cam package's maps.

What loggers of maps share is proved beside `GradCAMLogger`; that it does no harm to a run, in `conformance/`.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_grad_cam import ScoreCAM
from torch import nn

from lightning_vision.callbacks import ScoreCAMLogger, score_cam
from lightning_vision.callbacks.explain.score_cam import score_cam_maps, score_cam_masks
from lightning_vision.inspection.layers import read_maps
from support.cams import alike, network, package_maps
from support.data import labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer


class LinearScores(nn.Module):
    """Maps of a convolution beside an answer that is linear in the image, and how many images were asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps, self.head, self.asked = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(2 * 4 * 6, 3), []
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images):
        self.asked.append(len(images))
        self.grad = torch.is_grad_enabled()
        self.maps(images)
        return self.head(images.flatten(1))


def by_hand(model, images, classes, mutant=""):
    """Eq. 6 to 9 and Algorithm 1, an image, channel and place at a time, in float64."""
    weight, bias = (it.detach().double().numpy() for it in (model.head.weight, model.head.bias))
    activation = model.maps(images).detach().double().numpy()
    pixels, found = images.double().numpy(), []
    for image, maps, label in zip(pixels, activation, classes, strict=True):
        scores = []
        for one in maps:
            mask = (one - one.min()) / (one.max() - one.min())
            if mutant == "masks are not normalised":
                mask = one
            flat = (image * mask).reshape(-1)
            answer = weight @ flat + bias
            if mutant == "probabilities":
                answer = np.exp(answer) / np.exp(answer).sum()
            scores.append(answer[label] - bias[label])
        scores = np.array(scores)
        weights = np.exp(scores) / np.exp(scores).sum()
        if mutant == "no softmax":
            weights = scores
        if mutant == "uniform":
            weights = np.full(len(scores), 1 / len(scores))
        found.append(np.maximum(np.einsum("chw,c->hw", maps, weights), 0))
    return torch.from_numpy(np.stack(found)).float()


def pair():
    return LinearScores(), torch.randn(3, 2, 4, 6, generator=torch.Generator().manual_seed(1))


def test_the_maps_of_a_linear_model_are_those_by_brute_force():
    """Its layer has the images' size, so nothing is stretched; the baseline's logit is the head's bias."""
    model, images = pair()
    classes = torch.tensor([2, 0, 1])

    torch.testing.assert_close(score_cam(model, images, "maps", classes), by_hand(model, images, classes.tolist()))


@pytest.mark.parametrize("mutant", ["masks are not normalised", "probabilities", "no softmax", "uniform"])
def test_a_wrong_weight_is_noticed(mutant):
    model, images = pair()
    found = score_cam(model, images, "maps", 2)

    assert (by_hand(model, images, [2, 2, 2], mutant) - found).abs().max() > 0.02


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_every_channel_of_every_image_is_asked_about_once_in_batches(batch_size):
    model, images = pair()
    expected = score_cam(model, images, "maps", 2, batch_size=5)
    model.asked.clear()
    found = score_cam(model, images, "maps", 2, batch_size=batch_size)

    assert not model.grad
    assert model.asked == [3, *[batch_size] * (15 // batch_size), *filter(None, [15 % batch_size])]
    torch.testing.assert_close(found, expected)


def test_masks_are_stretched_and_reach_from_0_to_1():
    maps = torch.tensor([[[0.0, 2.0], [4.0, 8.0]], [[3.0, 3.0], [3.0, 3.0]]])
    masks = score_cam_masks(maps, torch.zeros(1, 3, 6, 4))
    stretched = F.interpolate(maps[:1, None], (6, 4), mode="bilinear", align_corners=False)[:, 0]

    torch.testing.assert_close(masks[:1], stretched / 8)
    assert torch.equal(torch.zeros(6, 4), masks[1])


@pytest.mark.parametrize(("kind", "layer", "side"), [("cnn", "layer1", 64), ("vit", "blocks.1.norm1", 6)])
def test_the_maps_are_those_of_the_grad_cam_package(kind, layer, side):
    """The package stretches masks from corner to corner, the paper's authors and we by half pixels, so that those from
    maps of 16x16 differ a little. A transformer with patches of one pixel needs no stretching; its maps nearly cancel,
    so that there the weights show.
    """
    model = network(kind, side, patch=1, certainty=5.0)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    found = score_cam(model, images, layer, torch.tensor([3, 1]))

    assert alike(found, package_maps(ScoreCAM, model, layer, images, [3, 1])) > 0.999
    assert alike(found, package_maps(ScoreCAM, model, layer, images, [1, 3])) < 0.99


def test_a_layer_of_equal_channels_gives_its_own_map():
    """Whatever the scores, weights sum to 1, so equal channels come back as one of them."""
    model, images = pair()
    with torch.no_grad():
        for parameter in model.maps.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    expected = model.maps(images).detach()[:, 0].relu()

    torch.testing.assert_close(score_cam(model, images, "maps", 1), expected)


def test_half_precision_is_asked_in_half_precision():
    module, (images, _) = Plain().eval(), labelled_images(4).tensors
    expected = score_cam(module, images, "network.2", 3)

    torch.testing.assert_close(
        score_cam(module.bfloat16(), images.bfloat16(), "network.2", 3), expected, rtol=0.05, atol=0.02
    )


def test_the_logger_draws_the_functions_maps_and_leaves_no_trace():
    module, (images, _) = Plain(), labelled_images(4).tensors
    module.train()
    logger = ScoreCAMLogger(layer="network.2", batch_size=3)
    maps, logits = logger.explain(module, images, 7)
    activation, answer = read_maps(module, images, "network.2")

    assert module.training and module.network[1].training and int(module.network[1].num_batches_tracked) == 0
    assert torch.equal(score_cam(module, images, "network.2", 7, batch_size=3), maps)
    assert torch.equal(answer, logits)
    assert score_cam_maps(module, images, activation, torch.full((4,), 7)).shape == (4, 3, 3)


def test_it_writes_a_sheet_of_four_images(tmp_path):
    trainer = quiet_trainer(callbacks=[ScoreCAMLogger()], default_root_dir=tmp_path)
    trainer.validate(Plain(), plain_loader(), verbose=False)

    assert [it.name for it in tmp_path.rglob("*.png")] == ["step_00000000.png"]
    assert ScoreCAMLogger().samples == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a whole number of at least 1"),
        ({"layer": "network.9"}, "has no layer 'network.9'"),
        ({"layer": "network.5"}, "no maps of images of 8x8"),
        ({"layer": "network.2", "class_index": 10}, "classes 0 to 9"),
    ],
)
def test_what_cannot_be_explained_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        score_cam(Plain(), torch.rand(1, 1, 8, 8), **given)


@pytest.mark.parametrize("given", [{"batch_size": 0}, {"batch_size": 2.5}, {"samples": 0}])
def test_a_setting_out_of_range_is_refused_at_once(given):
    ((name, value),) = given.items()

    with pytest.raises(ValueError, match=f"ScoreCAMLogger: {name} is {value}; give a whole number of at least 1"):
        ScoreCAMLogger(**given)
