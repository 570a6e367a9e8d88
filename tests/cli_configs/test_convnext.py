"""The recipe of ConvNeXt: its network against torchvision's, layer scale, what is decayed, and that it trains."""

import re

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from torch import Tensor

from lightning_vision import ImageClassifier, main
from lightning_vision.configs import read_config, shipped
from support.photos import photo_folder

RECIPE, FINETUNE = "classification/convnext", "classification/convnext_finetune"
# The parts of a block, torchvision's and timm's.
PARTS = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2", "layer_scale": "gamma"}


@pytest.fixture(scope="module")
def network() -> ConvNeXt:
    return timm.create_model(read_config(shipped()[RECIPE])["model"]["init_args"]["backbone"]).eval()


def renamed(key: str) -> str:
    """torchvision's name of a tensor as timm's."""
    if found := re.fullmatch(r"features\.(\d)\.(\d+)\.(block\.\d|layer_scale)(.*)", key):
        stage, block, part, rest = found.groups()
        return f"stages.{int(stage) // 2}.blocks.{block}.{PARTS[part]}{rest}"
    if found := re.fullmatch(r"features\.(\d)\.(\d)\.(.*)", key):
        stage, layer, rest = found.groups()
        return f"stem.{layer}.{rest}" if stage == "0" else f"stages.{int(stage) // 2}.downsample.{layer}.{rest}"
    return key.replace("classifier.0", "head.norm").replace("classifier.2", "head.fc")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_row_158_tiny_has_28_point_6_million_parameters(network: ConvNeXt) -> None:
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(28.6e6, rel=0.001)


def test_row_158_its_logits_are_torchvisions_after_mapping_the_keys(network: ConvNeXt) -> None:
    theirs = torchvision.models.convnext_tiny().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            # As initialised, blocks add a millionth of what they compute, and a wrong one would not be seen.
            if name.endswith("layer_scale"):
                tensor.uniform_(0.1, 0.3, generator=generator)
    own = network.state_dict()
    mapped = {renamed(name): tensor for name, tensor in theirs.state_dict().items()}
    network.load_state_dict({name: tensor.reshape(own[name].shape) for name, tensor in mapped.items()})
    with torch.no_grad():
        expected, actual = theirs(noise(1, 3, 64, 64)), network(noise(1, 3, 64, 64))

    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    with torch.no_grad():
        network.stages[2].blocks[4].gamma.mul_(1.1)
        assert (network(noise(1, 3, 64, 64)) - expected).abs().max() > 1e-3 * expected.abs().max()


def test_row_158_without_layer_scale_each_block_is_the_identity(network: ConvNeXt) -> None:
    blocks = [module for module in network.modules() if isinstance(module, ConvNeXtBlock)]
    for block in blocks:
        image = noise(1, block.conv_dw.in_channels, 4, 4)
        with torch.no_grad():
            kept = block.gamma.clone()
            block.gamma.fill_(0.5)
            assert not block(image).equal(image)
            block.gamma.zero_()
            assert block(image).equal(image)
            block.gamma.copy_(kept)

    assert len(blocks) == 3 + 3 + 9 + 3


@pytest.mark.parametrize("name", [RECIPE, FINETUNE])
def test_row_158_no_vector_is_decayed(name: str) -> None:
    given = read_config(shipped()[name])["model"]["init_args"]
    said = {key: given[key] for key in ("optimizer", "no_decay_norm_bias", "layer_decay") if key in given}
    module = ImageClassifier("convnext_atto", num_classes=5, **said)
    groups = module.configure_optimizers().param_groups
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]

    assert min(parameter.ndim for parameter in decayed) == 2
    assert {group["weight_decay"] for group in groups} == {0.0, given["optimizer"]["init_args"]["weight_decay"]}
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))
    matrices = sum(parameter.ndim > 1 for parameter in module.parameters())
    assert len(decayed) == matrices


def test_row_158_the_rate_of_fine_tuning_falls_with_the_layer() -> None:
    given = read_config(shipped()[FINETUNE])["model"]["init_args"]
    module = ImageClassifier("convnext_atto", 5, optimizer=given["optimizer"], layer_decay=given["layer_decay"])
    rates = {id(p): group["lr"] for group in module.configure_optimizers().param_groups for p in group["params"]}
    network = module.network

    assert rates[id(network.head.fc.weight)] == given["optimizer"]["init_args"]["lr"]
    assert rates[id(network.stem[0].weight)] < rates[id(network.stages[2].blocks[0].conv_dw.weight)]
    assert rates[id(network.stages[2].blocks[0].conv_dw.weight)] < rates[id(network.head.fc.weight)]


def test_row_158_the_recipe_takes_two_steps_with_atto_mixed_by_both() -> None:
    root = photo_folder("photos", ("brick", "cat"), number=10)
    data = ["--data.root", str(root), "--data.image_size", "32", "--data.train_size", "40", "--data.eval_size", "32"]
    data += ["--data.num_workers", "0", "--data.batch_size", "4", "--data.augment", "strong"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    quiet += ["--trainer.logger", "false", "--callbacks.best", "null", "--callbacks.last", "null"]
    short = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.limit_val_batches", "0"]
    both = ["--callbacks.mixup.prob", "1", "--callbacks.cutmix.prob", "1"]
    result = main(["fit", "--config", RECIPE, "--model.backbone", "convnext_atto", *data, *quiet, *short, *both])

    assert 0 < result.metrics["train/loss_epoch"] < float("inf")
