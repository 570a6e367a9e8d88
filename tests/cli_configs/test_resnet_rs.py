"""The recipe of ResNet-RS: the network it builds, its average of weights, and each ingredient on and off."""

import pytest
import timm
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from timm.layers import SEModule
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from lightning_vision import main
from lightning_vision.backbones import create
from lightning_vision.callbacks import EMA
from lightning_vision.configs import read_config, shipped
from support.data import plain_loader
from support.modules import Plain
from support.photos import photo_folder
from support.trainers import quiet_trainer

RECIPE = "classification/resnet_rs"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model = read_config(shipped()[RECIPE])["model"]["init_args"]
    with torch.device("meta"):
        return create(model["backbone"], num_classes=1000, in_channels=3, drop_rate=model["drop_rate"])


def test_row_96_each_block_squeezes_and_excites_a_quarter(network: ResNet) -> None:
    blocks = [module for module in network.modules() if isinstance(module, Bottleneck)]

    assert [type(block.se) for block in blocks] == [SEModule] * 16
    assert {block.se.fc1.in_channels / block.se.fc1.out_channels for block in blocks} == {4.0}


def test_row_96_stem_and_shortcuts_are_resnet_ds(network: ResNet) -> None:
    """Three convolutions for the stem's one, no max pooling, and shortcuts that average before they project."""
    shortcuts = [block.downsample for block in network.modules() if isinstance(block, Bottleneck) and block.downsample]

    assert [module.kernel_size for module in network.conv1 if isinstance(module, nn.Conv2d)] == [(3, 3)] * 3
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert [type(shortcut[0]) for shortcut in shortcuts] == [nn.Identity, *[nn.AvgPool2d] * 3]
    assert {shortcut[1].stride for shortcut in shortcuts} == {(1, 1)}


def test_row_96_the_parameters_are_those_of_timms_and_of_the_paper(network: ResNet) -> None:
    with torch.device("meta"):
        theirs = timm.create_model("resnetrs50")
    count = sum(parameter.numel() for parameter in network.parameters())

    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert count == pytest.approx(36e6, rel=0.01)


class Trajectory(Callback):
    """The trained weights before the first step and after each."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.weights.append(nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())


def test_row_96_the_average_of_weights_is_the_closed_form() -> None:
    """m_T = d^T w_0 + (1 - d) sum_t d^(T - t) w_t, with the recipe's decay and one that forgets soon enough to tell."""
    recipe = read_config(shipped()[RECIPE])["callbacks"]["ema"]["init_args"]
    for decay in (recipe["decay"], 0.7):
        module, path = Plain(), Trajectory()
        start = nn.utils.parameters_to_vector(module.parameters()).detach().double()
        trainer = quiet_trainer(max_epochs=1, limit_val_batches=0, callbacks=[EMA(decay=decay, warmup=1.0), path])
        trainer.fit(module, plain_loader(30))
        steps = len(path.weights)
        terms = [(1 - decay) * decay ** (steps - t) * w.double() for t, w in enumerate(path.weights, start=1)]
        expected = decay**steps * start + torch.stack(terms).sum(0)
        average = nn.utils.parameters_to_vector(module.parameters()).detach().double()

        assert steps == 5
        torch.testing.assert_close(average, expected, rtol=0, atol=1e-6)
        assert (average - path.weights[-1]).abs().max() > 1e-3


# The recipe's own network is `resnetrs50`; here one of its stem and shortcuts whose weights are a seventh.
ABLATIONS = {
    "everything": [],
    "stochastic depth": ["--model.drop_path_rate", "0.1"],
    "squeeze": ["--model.backbone", "seresnet18"],
    "no dropout": ["--model.drop_rate", "0"],
    "no smoothing": ["--model.label_smoothing", "0"],
    "usual decay": ["--model.optimizer.weight_decay", "1e-4"],
    "no RandAugment": ["--data.augment", "light"],
    "no average": ["--callbacks.ema", "null"],
    "no schedule": ["--callbacks.schedule", "null"],
}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_row_96_each_ingredient_on_and_off_takes_two_steps_on_tiny_images(ablation: str) -> None:
    root = photo_folder("photos", ("brick", "cat"), number=10)
    data = ["--data.root", str(root), "--data.image_size", "32", "--data.train_size", "40", "--data.eval_size", "32"]
    data += ["--data.num_workers", "0", "--data.batch_size", "4", "--data.augment", "randaugment"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    quiet += ["--trainer.logger", "false", "--callbacks.best", "null", "--callbacks.last", "null"]
    short = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    words = ["--model.backbone", "resnet10t", *data, *quiet, *short, *ABLATIONS[ablation]]
    result = main(["fit", "--config", RECIPE, *words])

    assert result.metrics["train/loss_epoch"] > 0
