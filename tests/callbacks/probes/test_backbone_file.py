"""The file holds the backbone's last weights, an average where one stands in, and another training starts there."""

import json

import pytest
import timm
import torch
from lightning.pytorch import Callback
from safetensors import safe_open
from torch import nn

from lightning_vision.callbacks import EMA, BackboneFile
from lightning_vision.classification import ImageClassifier
from lightning_vision.datamodules import Digits
from support.data import plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

NAME = "resnet8_cifar"


class Pretrained(Plain):
    """A backbone of timm's and something beside it that no classifier wants; the backbone is a property."""

    def __init__(self):
        super().__init__()
        body = timm.create_model(NAME, num_classes=0, in_chans=1)
        self.network = nn.Sequential()
        self.network.add_module("backbone", body)
        self.network.add_module("head", nn.Linear(body.num_features, 10))

    @property
    def backbone(self):
        return self.network.get_submodule("backbone")


def fitted(folder, *callbacks, module=None, **options):
    torch.manual_seed(0)
    module = Pretrained() if module is None else module
    trainer = quiet_trainer(default_root_dir=folder, limit_val_batches=0, callbacks=list(callbacks), **options)
    trainer.fit(module, plain_loader(12))
    return module


def content(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118  # no mapping


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return fitted(folder, BackboneFile(), max_epochs=2), folder / "backbone.safetensors"


def test_the_file_is_the_backbones_last_state_under_its_own_names(written):
    module, path = written
    tensors, told = content(path)
    own = module.backbone.state_dict()
    assert list(tensors) == sorted(own) and all(torch.equal(tensors[name], own[name]) for name in own)
    assert told["step"] == "4" and told["class"].endswith("Pretrained") and told["backbone"] == NAME
    assert [it.name for it in path.parent.glob("backbone*")] == ["backbone.safetensors"]


def test_a_classifier_starts_from_it(written):
    module, path = written
    classifier = ImageClassifier(NAME, in_channels=1, num_classes=7, weights=str(path))
    image = torch.randn(2, 1, 8, 8)
    expected = module.backbone.eval()(image)
    started = classifier.network.eval()
    torch.testing.assert_close(started.forward_head(started.forward_features(image), pre_logits=True), expected)
    fresh = ImageClassifier(NAME, in_channels=1, num_classes=7).network.eval()
    assert not torch.allclose(fresh.forward_head(fresh.forward_features(image), pre_logits=True), expected, atol=1e-3)


def test_where_an_average_stands_in_for_the_weights_the_file_holds_it(tmp_path):
    class Raw(Callback):
        def on_train_end(self, trainer, pl_module):
            self.weights = pl_module.backbone.state_dict()["stages.0.0.conv1.weight"].clone()

    raw = Raw()
    module = fitted(tmp_path, EMA(decay=0.5), BackboneFile(), raw, max_epochs=2)
    found = content(tmp_path / "backbone.safetensors")[0]["stages.0.0.conv1.weight"]
    # After the fit the module holds the average.
    assert torch.equal(found, module.backbone.state_dict()["stages.0.0.conv1.weight"])
    assert not torch.equal(found, raw.weights)


def test_it_is_written_every_so_many_epochs_and_survives_a_failure(tmp_path):
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                raise RuntimeError("the third")

    with pytest.raises(RuntimeError, match="the third"):
        fitted(tmp_path, Fails(), BackboneFile(every_n_epochs=2), max_epochs=9)
    assert content(tmp_path / "backbone.safetensors")[1]["epoch"] == "1"


def test_a_rehearsal_writes_nothing(tmp_path):
    fitted(tmp_path, BackboneFile(), fast_dev_run=2)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_part_is_named_and_a_compiled_one_is_no_other(tmp_path, compiler):
    module = Plain()
    module.network[0] = torch.compile(module.network[0], backend="eager")
    fitted(tmp_path, BackboneFile(module="network"), module=module, max_epochs=1)
    tensors, told = content(tmp_path / "backbone.safetensors")
    assert "0.weight" in tensors and "backbone" not in told


def test_how_images_were_prepared_is_told(tmp_path):
    module = ImageClassifier(NAME, in_channels=1, num_classes=10)
    trainer = quiet_trainer(default_root_dir=tmp_path, limit_val_batches=0, callbacks=[BackboneFile()], max_steps=1)
    trainer.fit(module, datamodule=Digits(batch_size=16))
    tensors, told = content(tmp_path / "backbone.safetensors")
    assert json.loads(told["preprocessing"])["mean"] == pytest.approx(Digits().mean)
    assert told["backbone"] == NAME and "head.fc.weight" in tensors


@pytest.mark.parametrize("wanted", [None, "network.backbone"])
def test_a_module_without_the_part_is_refused(tmp_path, wanted):
    class Bare(Plain):
        def __init__(self):
            super().__init__()
            self.layers = self.network
            del self.network

    with pytest.raises(ValueError, match=r"^BackboneFile: Bare has no part called .*its parts are layers; name one"):
        fitted(tmp_path, BackboneFile(module=wanted), module=Bare(), max_epochs=1)


def test_settings_out_of_range_and_two_of_one_file_are_refused(tmp_path):
    for settings in ({"every_n_epochs": 0}, {"filename": "backbone.ckpt"}, {"filename": "a/b.safetensors"}):
        with pytest.raises(ValueError, match=r"^BackboneFile: "):
            BackboneFile(**settings)
    with pytest.raises(ValueError, match=r"also writes backbone\.safetensors; give one of them another filename"):
        fitted(tmp_path, BackboneFile(name="a"), BackboneFile(name="b"), max_epochs=1)
