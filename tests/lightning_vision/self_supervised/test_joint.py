"""What learners of several views refuse at set-up."""

import pytest
import torch
from torch import nn

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised import SimCLR
from support.trainers import quiet_trainer


def fit(**settings):
    learner = SimCLR(in_channels=1, views="digits", hidden_dim=8, out_dim=4, **settings)
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(learner, datamodule=PlacedDigits(batch_size=8, drop_last=True))


class Maps(nn.Conv2d):
    """Says how wide its features are and pools nothing."""

    num_features = 4


def test_a_network_that_gives_maps_is_refused():
    with pytest.raises(ValueError, match=r"^SimCLR compares features \(B, 4\) and the Maps gives a map \(4, 22, 22\)"):
        fit(backbone=Maps(1, 4, 3))


def test_a_transformer_of_another_size_is_refused():
    small = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}

    with pytest.raises(ValueError, match=r"^a view is 24 x 24 pixels and the VisionTransformer takes 32 x 32 only"):
        fit(backbone="vit_tiny_patch16_224", backbone_settings=small | {"img_size": 32})
    fit(backbone="vit_tiny_patch16_224", backbone_settings=small | {"img_size": 24})


def test_what_is_asked_at_set_up_leaves_no_trace():
    learner = SimCLR(backbone="resnet8_cifar", in_channels=1, views="digits", hidden_dim=8, out_dim=4)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    part = next(it for it in learner.backbone.modules() if isinstance(it, nn.BatchNorm2d)).eval()
    torch.manual_seed(0)
    learner._check_pooled((24, 24))

    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    # A part that the user keeps in evaluation mode stays there.
    assert learner.backbone.training and not part.training and torch.initial_seed() == 0
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))
