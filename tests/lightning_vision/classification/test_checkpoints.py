"""However a module was made, its checkpoint loads with `weights_only=True` and gives the same module back."""

import os
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.optim.lr_scheduler import StepLR

from lightning_vision.base.weights import load_checkpoint, module_from_checkpoint
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.classification.losses import Focal
from lightning_vision.datamodules import Digits


class Net(nn.Module):
    """A network as a user writes one."""

    def __init__(self, width: int = 4, act: nn.Module | None = None):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), act or nn.ReLU(), nn.Linear(width, 10))

    def forward(self, image):
        return self.layers(image)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**quiet | {"accelerator": "cpu", "logger": False, "max_steps": 2} | options)


def saved(module, path="a.ckpt", **options):
    run = trainer(**options)
    run.fit(module, datamodule=Digits(batch_size=64))
    run.save_checkpoint(path)
    return module


def small(**settings):
    return ImageClassifier(**{"backbone": "resnet8_cifar", "num_classes": 10, "in_channels": 1, **settings})


def same(a, b):
    image = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        return torch.equal(a.eval()(image), b.eval()(image))


def made_by_the_command(*args):
    """The module that a LightningCLI builds, as the command does."""
    cli = LightningCLI(
        ImageClassifier,
        Digits,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=["--model.num_classes=10", "--model.in_channels=1", *args],
        trainer_defaults={"logger": False, "enable_checkpointing": False},
    )
    return cli.model


def from_the_command():
    optimizer = ["--model.optimizer=SGD", "--model.optimizer.lr=0.3", "--model.optimizer.weight_decay=0"]
    scheduler = ["--model.lr_scheduler=StepLR", "--model.lr_scheduler.step_size=2"]
    return made_by_the_command("--model.backbone=resnet8_cifar", *optimizer, *scheduler)


WAYS = {
    "defaults": small,
    "class": lambda: small(optimizer=torch.optim.SGD),
    "partial": lambda: small(
        optimizer=partial(torch.optim.SGD, lr=0.3, momentum=0.9), lr_scheduler=partial(StepLR, step_size=2)
    ),
    "description": lambda: small(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}),
    "command": from_the_command,
    "command with defaults": lambda: made_by_the_command("--model.backbone=resnet8_cifar"),
}


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize(
    "load", [partial(ImageClassifier.load_from_checkpoint, weights_only=True), module_from_checkpoint]
)
def test_what_data_can_express_comes_back(make, load):
    module = saved(make())
    loaded = load("a.ckpt")
    optimizers = [made.configure_optimizers() for made in (module, loaded)]

    assert type(loaded) is ImageClassifier
    assert same(module, loaded)
    if isinstance(optimizers[0], dict):
        assert [o["lr_scheduler"]["scheduler"].step_size for o in optimizers] == [2, 2]
        optimizers = [o["optimizer"] for o in optimizers]
    assert type(optimizers[0]) is type(optimizers[1])
    assert optimizers[0].defaults == optimizers[1].defaults


def test_every_value_in_a_checkpoint_is_plain_data():
    saved(small(optimizer=partial(torch.optim.SGD, lr=0.3)))
    content = load_checkpoint("a.ckpt")

    assert content["hyper_parameters"]["optimizer"] == {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.3}}
    assert content["class_path"] == "lightning_vision.classification.classifier.ImageClassifier"
    assert all(name.startswith("network.") for name in content["state_dict"])


INEXPRESSIBLE = {
    "lambda": ({"optimizer": lambda groups: torch.optim.SGD(groups, lr=0.3)}, "optimizer", "function"),
    "module as backbone": ({"backbone": Net(8)}, "backbone", "Net"),
    "module as loss": ({"loss": Focal(1.0)}, "loss", "Focal"),
}


@pytest.mark.parametrize(("settings", "name", "kind"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE.keys())
def test_what_data_cannot_express_is_left_out_and_asked_for(settings, name, kind):
    module = saved(small(**settings))
    message = rf"could not store {name} \(a {kind}\); pass it again: load_from_checkpoint\(path, {name}=...\)"

    assert name not in load_checkpoint("a.ckpt")["hyper_parameters"]
    with pytest.raises(ValueError, match=message):
        ImageClassifier.load_from_checkpoint("a.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=message):
        module_from_checkpoint("a.ckpt")
    assert same(module, ImageClassifier.load_from_checkpoint("a.ckpt", **settings))
    assert same(module, module_from_checkpoint("a.ckpt", **settings))


def test_modules_that_the_command_built_come_back_without_being_passed():
    module = saved(
        made_by_the_command(
            f"--model.backbone={__name__}.Net",
            "--model.backbone.width=8",
            "--model.loss=lightning_vision.classification.losses.Focal",
            "--model.loss.gamma=1.5",
        )
    )
    loaded = ImageClassifier.load_from_checkpoint("a.ckpt", weights_only=True)

    assert (loaded.network.layers[1].out_features, loaded.criterion.gamma) == (8, 1.5)
    assert same(module, loaded)


def test_a_module_inside_a_module_that_the_command_built_comes_back():
    act = ["--model.backbone.act=torch.nn.LeakyReLU", "--model.backbone.act.negative_slope=0.5"]
    module = saved(made_by_the_command(f"--model.backbone={__name__}.Net", *act))
    loaded = ImageClassifier.load_from_checkpoint("a.ckpt", weights_only=True)

    assert loaded.network.layers[2].negative_slope == 0.5
    assert same(module, loaded)


def test_a_subclass_is_rebuilt_from_its_own_arguments():
    module = saved(Wide(8))
    loaded = Wide.load_from_checkpoint("a.ckpt", weights_only=True)

    assert same(module, loaded)
    assert same(module, module_from_checkpoint("a.ckpt"))
    assert load_checkpoint("a.ckpt")["left_out"] == {}


class Wide(ImageClassifier):
    def __init__(self, width):
        super().__init__(Net(width), num_classes=10, in_channels=1)


class Student(LightningModule):
    def __init__(self, teacher_depth):
        super().__init__()
        self.student = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)


def test_a_classifier_inside_another_module_keeps_its_own_arguments():
    assert Student(3).student.hparams["backbone"] == "resnet8_cifar"
    assert "teacher_depth" not in Student(3).student.hparams


def test_weights_that_training_started_from_are_not_needed_again():
    torch.save(small().network.state_dict(), "start.pt")
    module = saved(small(weights="start.pt"))
    os.remove("start.pt")

    assert module.hparams["weights"] == "start.pt"
    assert same(module, ImageClassifier.load_from_checkpoint("a.ckpt"))


def test_weights_of_a_checkpoint_start_a_new_training():
    module = saved(small())

    assert same(module, small(weights="a.ckpt"))


def test_weights_round_trip_through_timm():
    module = saved(small())
    torch.save(module.network.state_dict(), "timm.pt")
    network = timm.create_model("resnet8_cifar", in_chans=1, checkpoint_path="timm.pt")
    torch.save(network.state_dict(), "back.pt")
    image = torch.randn(2, 1, 8, 8)

    assert torch.equal(network.eval()(image), module.eval()(image))
    assert same(module, small(weights="back.pt"))


def test_a_checkpoint_of_another_architecture_is_refused_by_the_trainer():
    saved(small())
    other = ImageClassifier("resnet20_cifar", num_classes=10, in_channels=1)
    message = r"^the weights are of another architecture than this ImageClassifier: \d+ missing \([^\n]*$"
    with pytest.raises(ValueError, match=message):
        trainer().test(other, datamodule=Digits(), ckpt_path="a.ckpt", weights_only=True, verbose=False)


def test_a_checkpoint_of_the_same_architecture_is_accepted_by_the_trainer():
    module = saved(small())
    other = small()
    trainer().test(other, datamodule=Digits(), ckpt_path="a.ckpt", weights_only=True, verbose=False)

    assert same(module, other)


def test_a_checkpoint_with_other_classes_names_the_shapes_that_differ():
    module = saved(small())
    content = {**load_checkpoint("a.ckpt")}
    with pytest.raises(ValueError, match=r"2 of another shape \(network.head.fc.weight, network.head.fc.bias\)"):
        small(num_classes=3).load_state_dict(content["state_dict"])
    assert module.num_classes == 10


def test_a_checkpoint_of_a_stranger_is_refused():
    stranger = LightningModule()
    torch.save({"state_dict": stranger.state_dict(), "pytorch-lightning_version": "2.6.4"}, "a.ckpt")

    message = "^the checkpoint was made by a class that it does not name, so ImageClassifier misses backbone$"
    with pytest.raises(ValueError, match=message):
        ImageClassifier.load_from_checkpoint("a.ckpt")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil_ran",)


@pytest.mark.parametrize("load", [ImageClassifier.load_from_checkpoint, module_from_checkpoint])
def test_a_checkpoint_with_code_is_refused_and_not_run(load):
    saved(small())
    content = torch.load("a.ckpt", weights_only=True)
    torch.save({**content, "callbacks": Evil()}, "evil.ckpt")

    with pytest.raises(
        ValueError, match=r"^evil.ckpt was refused: reading it would run code from the file \(posix.system\)$"
    ):
        load("evil.ckpt")
    assert not Path("evil_ran").exists()


@pytest.mark.parametrize(
    ("name", "class_path"), [("optimizer", "os.system"), ("lr_scheduler", "torch.optim.SGD"), ("backbone", "os.system")]
)
def test_a_checkpoint_that_names_another_class_is_refused_and_the_class_not_called(name, class_path):
    saved(small())
    content = torch.load("a.ckpt", weights_only=True)
    content["hyper_parameters"][name] = {"class_path": class_path, "init_args": {"command": "touch evil_ran"}}
    torch.save(content, "a.ckpt")

    with pytest.raises(ValueError, match=f"{class_path} was refused and not called"):
        ImageClassifier.load_from_checkpoint("a.ckpt")
    assert not Path("evil_ran").exists()


STRANGER = """
open("stranger_ran", "w").close()
from torch import nn
class Mine(nn.Identity): pass
"""


class Foreign(LightningModule):
    """A module that has nothing of this package but the class's name in its checkpoint."""

    def __init__(self, backbone: str | nn.Module = "none", num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.save_hyperparameters()


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "module_arguments"])
@pytest.mark.parametrize(
    ("make", "load"),
    [
        (small, ImageClassifier.load_from_checkpoint),
        (small, module_from_checkpoint),
        (Foreign, module_from_checkpoint),
    ],
    ids=["its class", "by name", "foreign"],
)
def test_a_checkpoint_cannot_have_its_classes_imported_by_the_commands_parser(make, load, key, tmp_path, monkeypatch):
    module = make()
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint("a.ckpt", weights_only=True)
    content = torch.load("a.ckpt", weights_only=True)
    evil = {"class_path": "stranger.Mine"}
    class_path = f"{type(module).__module__}.{type(module).__qualname__}"
    how = {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": class_path}
    if key == "hyper_parameters":
        content[key] |= how | {"backbone": evil}
    else:
        content[key] = how
        content["hyper_parameters"]["backbone"] = evil
    content["class_path"] = class_path
    torch.save(content, "a.ckpt")
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)

    if make is Foreign:
        assert load("a.ckpt").hparams.backbone == evil
    else:
        with pytest.raises(ValueError, match=r"stranger\.Mine is not imported"):
            load("a.ckpt")
    assert not Path("stranger_ran").exists()


def test_a_checkpoint_that_weighs_nothing_but_weights_loads_too():
    module = saved(small())
    run = trainer()
    run.strategy.connect(module)
    run.save_checkpoint("weights.ckpt", weights_only=True)

    assert same(module, ImageClassifier.load_from_checkpoint("weights.ckpt"))
