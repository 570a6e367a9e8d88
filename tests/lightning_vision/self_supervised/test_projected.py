"""Fine-tuning begins with exactly the layers of the head that were chosen, and with nothing of the others."""

import warnings

import pytest
import torch
from torch import nn

from lightning_vision import ImageClassifier
from lightning_vision.base.weights import load_weights
from lightning_vision.self_supervised import ProjectedBackbone, SimCLR
from support.learners import tiny, unlabelled
from support.trainers import quiet_trainer

SETTINGS = {"backbone": "plain8_cifar", "backbone_settings": {"widths": [4, 8]}, "in_channels": 1, "hidden_dim": 16}
SETTINGS |= {"out_dim": 8}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A learner with a memory, after two steps, and its checkpoint."""
    learner, path = tiny(SimCLR, memory=20), tmp_path_factory.mktemp("simclr") / "last.ckpt"
    trainer = quiet_trainer(max_steps=2)
    trainer.fit(learner, unlabelled())
    trainer.save_checkpoint(path)
    return learner.eval(), path


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_row_51_fine_tuning_from_a_layer_keeps_exactly_the_chosen_weights(layers, pretrained):
    learner, path = pretrained
    described = {
        "class_path": "lightning_vision.self_supervised.ProjectedBackbone",
        "init_args": {**SETTINGS, "num_classes": 10, "layers": layers},
    }
    with warnings.catch_warnings():
        # What the file has beside the network, and the classifier that no pretraining has.
        warnings.simplefilter("ignore")
        network = ImageClassifier(described, 10, in_channels=1, weights=str(path)).network.eval()
    kept = {name for name, _ in network.named_parameters() if name.startswith("projector")}
    chosen = [it for it in learner.network.projector if isinstance(it, nn.Linear)][:layers]

    assert sum(isinstance(it, nn.Linear) for it in network.projector) == len(chosen)
    assert len(kept) == min(layers, 2) * 3 + (layers == 3)
    for name, value in network.state_dict().items():
        if not name.startswith("classifier"):
            assert torch.equal(value, learner.network.state_dict()[name])
    # Its features are those of the learner there, with the batch norm and the ReLU behind the last layer.
    image = torch.randn(5, 1, 8, 8)
    wanted = learner.network.projector[: len(network.projector)](learner.backbone(image))
    torch.testing.assert_close(network.projector(network.backbone(image)), wanted)


def test_another_head_is_refused_and_so_is_a_network_that_does_not_say_what_it_leaves_out(pretrained):
    wide, mutant = (ProjectedBackbone(**SETTINGS | {"hidden_dim": width}, num_classes=10) for width in (12, 16))
    mutant.left_out = ()

    for network in (wide, mutant):
        with pytest.raises(ValueError, match="weights of another architecture than ProjectedBackbone"):
            load_weights(network, pretrained[1])


def test_the_classifier_is_found_by_those_who_train_it_alone():
    module = ImageClassifier(ProjectedBackbone(**SETTINGS, num_classes=10), 10, in_channels=1, freeze_backbone=True)

    assert [name for name, it in module.named_parameters() if it.requires_grad] == [
        "network.classifier.weight",
        "network.classifier.bias",
    ]


def test_more_layers_than_the_head_has_are_refused():
    with pytest.raises(ValueError, match=r"^layers is 4 and the head has 3; give 0 to 3$"):
        ProjectedBackbone(**SETTINGS, num_classes=10, layers=4)
