"""Grad-CAM's maps are those of the `grad-cam` package, up to the scale of each image, on CNNs, ViT and Swin."""

import copy

import numpy as np
import pytest
import timm
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from lightning_vision.callbacks import grad_cam
from lightning_vision.inspection.layers import find_layer
from support.compare import seeded

CLASSES = [0, 1, 2, 3, 4] * 3


def tokens(side):
    return lambda output: output[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def channels_last(output):
    return output.permute(0, 3, 1, 2)


NETWORKS = {
    "resnet10t": ("layer4", None, {}),
    "test_efficientnet": ("bn2", None, {}),
    "test_convnext": ("stages", None, {}),
    "test_byobnet": ("stages.3", None, {}),
    "test_nfnet": ("final_act", None, {}),
    "test_vit": ("blocks.5.norm1", tokens(4), {"img_size": 64}),
    "swin_tiny_patch4_window7_224": (
        "layers.2.blocks.0.norm1",
        channels_last,
        {"img_size": 64, "window_size": 4, "depths": (1, 1, 1), "embed_dim": 24, "num_heads": (2, 2, 2)},
    ),
}


def pictures():
    """Three images, each once for every class."""
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).repeat_interleave(5, 0)


def by_theirs(model, layer, reshape):
    method = GradCAM(model, [find_layer(model, layer)], reshape_transform=reshape)
    return method(pictures(), [ClassifierOutputTarget(label) for label in CLASSES])


def least_correlation(ours, theirs):
    """Over the maps that vary; a class against which all evidence speaks has a map of zeros, theirs, too."""
    varies = ours.flatten(1).std(1) > 0
    assert varies.sum() >= 3
    assert not theirs[~varies].any()
    pairs = zip(ours[varies].numpy(), theirs[varies], strict=True)
    return min(np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_row_93_maps_correlate_with_those_of_the_grad_cam_package(name):
    layer, reshape, settings = NETWORKS[name]
    model = seeded(lambda: timm.create_model(name, num_classes=5, **settings)).eval()
    ours = grad_cam(model, pictures(), layer, torch.tensor(CLASSES))
    theirs = by_theirs(copy.deepcopy(model), layer, reshape)
    if name in ("resnet10t", "test_efficientnet", "test_vit"):
        assert torch.equal(ours, grad_cam(model, pictures(), None, torch.tensor(CLASSES)))

    assert least_correlation(ours, theirs) >= 0.999
    assert np.corrcoef(ours.flatten(), np.roll(theirs, 1, 0).flatten())[0, 1] < 0.9


def test_row_93_a_frozen_network_has_maps_where_theirs_fails():
    model = seeded(lambda: timm.create_model("resnet10t", num_classes=5)).eval()
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        by_theirs(copy.deepcopy(frozen), "layer4", None)

    ours = grad_cam(frozen, pictures(), None, torch.tensor(CLASSES))
    assert least_correlation(ours, by_theirs(model, "layer4", None)) >= 0.999
