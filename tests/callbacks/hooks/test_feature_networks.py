"""A network of features is asked as it was trained, by its images, mode and precision; what has none is refused."""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.callbacks.hooks._feature_networks import FeatureNetwork, refuse_shared
from lightning_vision.self_supervised import SimCLR
from support.learners import tiny
from support.teachers import teacher_file
from support.trainers import quiet_trainer

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def saved(module, path, preprocessing=None):
    module.preprocessing = preprocessing
    trainer = quiet_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def test_without_a_network_features_are_the_pixels():
    network = FeatureNetwork("A", None, None, None)

    assert torch.equal(network(IMAGES), IMAGES.flatten(1))
    assert (network.name, network.fingerprint) == ("pixels", "pixels")


def test_a_classifiers_features_are_what_its_last_layer_is_given():
    network = FeatureNetwork("A", str(teacher_file()), None, None)
    classifier = module_from_checkpoint(teacher_file()).eval().network
    found = network(IMAGES)

    assert torch.allclose(F.linear(found, classifier.head.fc.weight, classifier.head.fc.bias), classifier(IMAGES))
    assert not found.requires_grad and found.shape == (3, 64) and network.name == "teacher.ckpt"


def test_a_learners_are_its_own(tmp_path):
    learner = tiny(SimCLR)
    network = FeatureNetwork("A", saved(learner, tmp_path / "learner.ckpt"), None, None)

    assert torch.equal(network(IMAGES), learner.eval().features(IMAGES))


def test_it_gets_images_as_it_had_them(tmp_path):
    had = {"class_names": None, "channels": 1, "image_size": 8, "resize": None, "mean": [0.2], "std": [0.4]}
    path = saved(tiny(SimCLR), tmp_path / "learner.ckpt", had)
    plain, ours = (FeatureNetwork("A", path, None, it) for it in (None, ([0.5], [0.5])))
    pixels = IMAGES * 0.5 + 0.5

    assert torch.allclose(ours(IMAGES), plain((pixels - 0.2) / 0.4), atol=1e-6)
    assert not torch.allclose(ours(IMAGES), plain(IMAGES), atol=1e-3)
    assert torch.equal(FeatureNetwork("A", path, None, ([0.2], [0.4]))(IMAGES), plain(IMAGES))


def test_a_network_of_ones_own_computes_in_its_precision_and_mode_and_has_them_back():
    own = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Dropout(0.5))
    network = FeatureNetwork("A", own, None, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = network(IMAGES)

    assert torch.equal(found, own[1](IMAGES.flatten(1))) and found.dtype == torch.float32
    assert not own[2].training and not own[1].weight.requires_grad
    network.give_back()
    assert own[2].training and own[1].weight.requires_grad


def test_fingerprints_tell_networks_apart():
    torch.manual_seed(0)
    one, other = nn.Linear(64, 5), nn.Linear(64, 5)
    prints = [FeatureNetwork("A", it, None, None).fingerprint for it in (one, other, one)]

    assert prints[0] == prints[2] != prints[1] and prints[0].startswith("Linear ")


class Odd(nn.Module):
    def forward(self, images):
        return images


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            "resnet18",
            "A: features is 'resnet18'; give a checkpoint's path (*.ckpt), 'inception', a network, or None for ",
        ),
        ("no.ckpt", "A: features 'no.ckpt': no checkpoint at no.ckpt."),
        (Odd(), "A: the network of the features (Odd) answered (3, 1, 8, 8) to 3 images; let it return one row of n"),
        (
            nn.Conv2d(3, 1, 1),
            "A: the network of the features (Conv2d) does not take images (1, 8, 8) (Given groups=1, w",
        ),
    ],
)
def test_what_gives_no_features_is_refused(features, message):
    with pytest.raises(ValueError) as caught:
        FeatureNetwork("A", features, None, None)(IMAGES)

    assert str(caught.value).startswith(message) and str(caught.value).endswith(".")


def test_a_checkpoint_without_features_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "lightning_vision.callbacks.hooks._feature_networks.module_from_checkpoint", lambda path: nn.Linear(2, 2)
    )
    with pytest.raises(ValueError, match=r"^A: a.ckpt holds a Linear, which has neither features\(images\) nor a net"):
        FeatureNetwork("A", "a.ckpt", None, None)


def test_the_network_that_trains_is_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(
        ValueError, match=r"^A: the network of the features \(BatchNorm1d\) shares weights with Sequent"
    ):
        refuse_shared("A", module[1], module)
    refuse_shared("A", nn.Linear(2, 2), module)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Random weights in torch-fidelity's format, of its own architecture, which would else download some."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(theirs.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        torch.save(theirs.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict(), path)
    return str(path)


def test_inceptions_features_are_torch_fidelitys_of_the_pixels(inception_file):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureNetwork("A", "inception", inception_file, ([0.5], [0.5]))
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], inception_file)
    pixels = torch.randint(256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = network(pixels / 255 * 2 - 1)

    assert torch.equal(found, theirs(pixels.expand(-1, 3, -1, -1))[0])
    assert found.shape == (2, 2048) and found.std() > 0


def test_inception_downloads_nothing_and_says_what_it_lacks(inception_file, tmp_path, monkeypatch):
    for weights, message in {
        None: "A: features='inception' downloads nothing; give with weights= the file of torch-fidelity, weights-i",
        "no.pth": "A: weights 'no.pth' are none of torch-fidelity's Inception v3 (no weights at no.pth).",
    }.items():
        with pytest.raises(ValueError) as caught:
            FeatureNetwork("A", "inception", weights, ([0.5], [0.5]))
        assert str(caught.value).startswith(message)
    torch.save(timm.create_model("resnet10t", num_classes=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"are none of torch-fidelity's Inception v3 \(Error\(s\) in loading state_dict"
    ):
        FeatureNetwork("A", "inception", str(tmp_path / "other.pth"), ([0.5], [0.5]))
    with pytest.raises(
        ValueError, match=r"^A: Inception v3 takes pixels, and neither datamodule nor module say how im"
    ):
        FeatureNetwork("A", "inception", inception_file, None)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match=r'^A needs torch-fidelity; pip install "lightning_vision\[fid\]"$'):
        FeatureNetwork("A", "inception", inception_file, ([0.5], [0.5]))


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2), "more": SimpleNamespace()}, tmp_path / "code.pth")
    with pytest.raises(
        ValueError, match=r"are none of torch-fidelity's Inception v3 \(.* was refused: reading it would"
    ):
        FeatureNetwork("A", "inception", str(tmp_path / "code.pth"), ([0.5], [0.5]))
