"""The recipe of Inception-v4 and Inception-ResNet-v2: sizes, residual scale, and steps that stay finite.

The ensemble that the paper evaluates is tested in `tests/lightning_vision/classification/test_ensemble.py`.
"""

import re

import pytest
import timm
import torch
import yaml
from timm.models.inception_resnet_v2 import Block8, Block17, Block35
from torch import Tensor, nn

from lightning_vision import ImageClassifier
from lightning_vision.backbones.inception_resnet import ScaledInceptionResNet
from lightning_vision.configs import read_config, shipped
from support import ROOT

RECIPE = "classification/inception_v4"
NETWORKS = {"inception_v4": 42.7e6, "inception_resnet_v2": 55.8e6}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_row_157_the_parameters_are_those_of_timm_and_of_the_paper(name: str) -> None:
    with torch.device("meta"):
        network = ImageClassifier(name, num_classes=1000).network
        theirs = timm.create_model(name)
    count = sum(parameter.numel() for parameter in network.parameters())

    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    assert count == pytest.approx(NETWORKS[name], rel=0.002)


@pytest.mark.parametrize(("block", "channels"), [(Block35, 320), (Block17, 1088), (Block8, 2080)])
def test_row_157_a_residual_scale_of_zero_leaves_shortcut_and_relu(block: type[nn.Module], channels: int) -> None:
    image = noise(2, channels, 5, 5)
    with torch.no_grad():
        assert block(scale=0.0).eval()(image).equal(image.relu())
        assert not block(scale=0.1).eval()(image).equal(image.relu())


def test_row_157_one_scale_reaches_all_blocks_but_the_last() -> None:
    with torch.device("meta"):
        network = ScaledInceptionResNet(num_classes=5, residual_scale=0.25)
        theirs = timm.create_model("inception_resnet_v2", num_classes=5)
    blocks = [module for module in network.modules() if isinstance(module, Block35 | Block17 | Block8)]

    assert [block.scale for block in blocks] == [0.25] * (10 + 20 + 9) + [1.0]
    assert {name: value.shape for name, value in network.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }


def test_a_config_can_describe_the_scaled_network() -> None:
    card = (ROOT / "docs" / "methods" / "inception_v4.md").read_text()
    block, _ = re.findall(r"^```yaml\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    given = yaml.safe_load(block)["model"]["init_args"]
    with torch.device("meta"):
        module = ImageClassifier(**given, num_classes=5)

    assert isinstance(module.network, ScaledInceptionResNet)
    assert {block.scale for block in module.network.repeat} == {given["backbone"]["init_args"]["residual_scale"]}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("inception_v4", 75),
        ("inception_resnet_v2", 75),
        pytest.param("inception_v4", 299, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v2", 299, marks=pytest.mark.slow),
    ],
)
def test_row_157_one_training_step_is_finite(name: str, side: int) -> None:
    given = read_config(shipped()[RECIPE])["model"]["init_args"]
    said = {key: given[key] for key in ("optimizer", "label_smoothing", "drop_rate")}
    module = ImageClassifier(name, num_classes=5, **said).train()
    optimizer = module.configure_optimizers()
    loss = module.criterion(module(noise(2, 3, side, side)), torch.tensor([1, 3]))
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), read_config(shipped()[RECIPE])["trainer"]["gradient_clip_val"])
    optimizer.step()

    assert loss.isfinite()
    assert all(tensor.isfinite().all() for tensor in module.state_dict().values())


def test_the_optimizer_has_its_epsilon_inside_the_root() -> None:
    """v = 0.9 * 1 + 0.1 * 3^2 = 1.8, so the step is 0.045 * 3 / sqrt(1.8 + 1); torch's would be / (sqrt(0.9) + 1)."""
    given = read_config(shipped()[RECIPE])["model"]["init_args"]["optimizer"]
    weight = nn.Parameter(torch.tensor([2.0]))
    weight.grad = torch.tensor([3.0])
    optimizer = timm.optim.RMSpropTF([weight], **(given["init_args"] | {"weight_decay": 0.0}))
    optimizer.step()

    assert given["class_path"] == "timm.optim.RMSpropTF"
    assert weight.item() == pytest.approx(2 - 0.045 * 3 / (1.8 + 1.0) ** 0.5)


def test_a_negative_residual_scale_is_refused() -> None:
    message = "ScaledInceptionResNet: residual_scale is -0.1; give a factor of at least 0"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ScaledInceptionResNet(residual_scale=-0.1)
