"""What every network of this folder does: sizes, timm's interface, feature maps, layer numbers, export.

The mathematics of each family is proved in the file named for it.
"""

import re
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import group_parameters, is_model
from timm.optim import param_groups_layer_decay
from torch import nn

from lightning_vision.backbones import allcnn, cct, plain, pyramidnet, resnet_cifar

FAMILIES = (allcnn, cct, sys.modules["lightning_vision.backbones.maxout"], plain, pyramidnet, resnet_cifar)
PUBLISHED = [name for family in FAMILIES for name in family.__all__ if is_model(name)]

# One small member of each family: preset, settings over it, units (layers between stem and head), feature levels.
SMALL = {
    "resnet": ("resnet8_cifar", {}, 3, [(16, 1), (32, 2), (64, 4)]),
    "allcnn": ("allcnn_c", {}, 8, [(96, 2), (192, 4), (192, 4)]),
    "maxout": ("maxout_tiny", {}, 3, [(32, 2), (48, 4), (48, 8)]),
    "plain": ("plain8", {}, 7, [(16, 2), (32, 4), (64, 8), (96, 16)]),
    "pyramid": ("pyramidnet110_a48", {"depth": 8, "alpha": 6}, 3, [(18, 1), (20, 2), (22, 4)]),
    "bottleneck": ("pyramidnet164_a270", {"depth": 11, "alpha": 6}, 3, [(72, 1), (80, 2), (88, 4)]),
    "cct": ("cct_2_3x2_32", {}, 2, [(128, 4), (128, 4)]),
    "cvt": ("cvt_6_4_32", {"depth": 3}, 3, [(256, 4)] * 3),
    "vit_lite": ("vit_lite_6_4_32", {"depth": 3}, 3, [(256, 4)] * 3),
}
small = pytest.mark.parametrize("kind", SMALL)


def build(kind: str, **settings: object) -> nn.Module:
    name, own, _, _ = SMALL[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(name, **own | settings)


def image(size: int = 32, channels: int = 3, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_summary_states_the_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    summary = timm.models.model_entrypoint(name).__doc__.partition("\n")[0]
    stated = re.search(r"(\d+\.?\d*) M parameters\.$", summary)[1]
    decimals = len(stated.partition(".")[2])

    assert float(stated) == round(millions, decimals)


@small
@pytest.mark.parametrize("size", [8, 16, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_8_to_32_pixels_give_logits(kind: str, size: int, channels: int) -> None:
    network = build(kind, in_chans=channels, num_classes=5).eval()
    with torch.no_grad():
        logits = network(image(size, channels))

    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert (logits[0] != logits[1]).any()


@small
def test_without_classes_the_pooled_features_come_out(kind: str) -> None:
    network = build(kind).eval()
    with torch.no_grad():
        features = network.forward_features(image())
        pooled = network.forward_head(features, pre_logits=True)
        expected = network.get_classifier()(pooled[:, :, None, None] if kind == "allcnn" else pooled).flatten(1)
        logits = network(image())
        network.reset_classifier(0)
        bare = network(image())

    assert pooled.shape == (2, network.num_features)
    torch.testing.assert_close(logits, expected)
    assert bare.equal(pooled)
    assert network.num_classes == 0
    assert build(kind, num_classes=0)(image()).shape == (2, network.num_features)


@small
def test_a_reset_classifier_is_fresh_and_of_the_new_width(kind: str) -> None:
    network = build(kind).eval()
    before = network.get_classifier().weight
    network.reset_classifier(10)
    same_width = network.get_classifier().weight
    network.reset_classifier(7)

    assert not same_width.equal(before)
    assert network.get_classifier().weight.shape[0] == network.num_classes == 7
    assert network(image()).shape == (2, 7)


@small
def test_the_state_survives_a_round_trip(kind: str) -> None:
    network, other = build(kind), build(kind)
    for parameter in other.parameters():
        parameter.data.add_(1)
    other.load_state_dict(network.state_dict())

    assert other.eval()(image()).equal(network.eval()(image()))


@small
def test_feature_maps_have_the_stated_channels_and_reductions(kind: str) -> None:
    network = build(kind, features_only=True).eval()
    with torch.no_grad():
        maps = network(image())
    levels = SMALL[kind][3]

    assert list(zip(network.feature_info.channels(), network.feature_info.reduction(), strict=True)) == levels
    assert [tuple(level.shape) for level in maps] == [(2, width, 32 // step, 32 // step) for width, step in levels]


@small
def test_the_last_feature_map_is_what_the_head_would_read(kind: str) -> None:
    network = build(kind).eval()
    features = network.forward_features(image())
    if hasattr(network, "blocks"):
        _, maps = network.forward_intermediates(image(), indices=1, norm=True)
        expected = features[:, network.num_prefix_tokens :].transpose(1, 2).unflatten(2, network.grid)
    else:
        maps = build(kind, features_only=True).eval()(image())
        expected = features

    torch.testing.assert_close(maps[-1], expected, rtol=0, atol=0)


@small
def test_layers_are_numbered_from_stem_to_head(kind: str) -> None:
    network = build(kind)
    numbers = group_parameters(network, network.group_matcher(), reverse=True)
    in_order = [numbers[name] for name, _ in network.named_parameters() if name not in ("pos_embed", "cls_token")]
    has_stem = any(re.match(r"stem|tokenizer", name) for name in numbers)
    units = SMALL[kind][2]

    assert set(numbers) == {name for name, _ in network.named_parameters()}
    assert in_order == sorted(in_order)
    assert set(in_order) == set(range(units + 1 + has_stem))
    assert {numbers[name] for name in numbers if name.startswith("head")} == {units + has_stem}
    assert {numbers[name] for name in numbers if re.match("norm|final", name)} <= {units + has_stem - 1}


@small
def test_layer_decay_halves_the_rate_from_layer_to_layer(kind: str) -> None:
    groups = param_groups_layer_decay(build(kind), layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in groups}, reverse=True)

    assert scales == [0.5**i for i in range(len(scales))]
    assert len(scales) >= SMALL[kind][2] + 1


@small
def test_the_exported_program_equals_eager_at_other_batch_sizes(kind: str) -> None:
    network = build(kind).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (image(),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        expected = network(image(count=5))
        exported = program.module()(image(count=5))

    torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)


@small
def test_checkpointing_leaves_the_gradients_as_they_are(kind: str) -> None:
    gradients = []
    for enable in (False, True):
        network = build(kind)
        network.set_grad_checkpointing(enable)
        network(image()).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])

    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


@small
def test_checkpointing_recomputes_the_units(kind: str) -> None:
    network = build(kind)
    calls = []
    units = network.blocks if hasattr(network, "blocks") else network.stages[0]
    units[0].register_forward_pre_hook(lambda *_: calls.append(1))
    network.set_grad_checkpointing()
    network(image()).sum().backward()

    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["resnet", "pyramid", "bottleneck", "cct"])
def test_stochastic_depth_acts_in_training_only(kind: str) -> None:
    network, plain = build(kind, drop_path_rate=0.9), build(kind)
    still, moving = network.eval()(image()), network.train()(image())

    assert still.equal(plain.eval()(image()))
    assert not moving.equal(plain.train()(image()))


@small
def test_dropout_acts_in_training_only(kind: str) -> None:
    network, plain = build(kind, drop_rate=0.5), build(kind)
    still, moving = network.eval()(image()), network.train()(image())

    assert still.equal(plain.eval()(image()))
    assert not moving.equal(plain.train()(image()))
    assert network.drop_rate == 0.5


@small
def test_every_activation_is_a_module_of_its_own(kind: str) -> None:
    network = build(kind).eval()
    calls: dict[nn.Module, int] = {}
    for module in network.modules():
        if isinstance(module, nn.ReLU | nn.GELU):
            calls[module] = 0
            assert not getattr(module, "inplace", False)
            module.register_forward_hook(lambda module, *_: calls.update({module: calls[module] + 1}))
    network(image())

    assert set(calls.values()) <= {1}


def test_importing_the_package_is_enough_for_timm() -> None:
    code = """
import timm, lightning_vision.backbones
network = timm.create_model("resnet8_cifar", num_classes=3, in_chans=1)
print(network.get_classifier().out_features, network.pretrained_cfg["first_conv"], network.in_chans)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["3", "stem.0", "1"]
    assert done.stderr == ""


@small
def test_the_configuration_names_the_first_convolution_and_the_classifier(kind: str) -> None:
    network = build(kind)
    first = network.get_submodule(network.pretrained_cfg["first_conv"])

    assert first.in_channels == 3
    assert network.get_submodule(network.pretrained_cfg["classifier"]) is network.get_classifier()
    assert next(module for module in network.modules() if isinstance(module, nn.Conv2d)) is first
