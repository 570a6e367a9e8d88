"""The rate and decay that each parameter is really updated with."""

import pytest
import timm
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from lightning_vision.base.param_groups import (
    check_rates_kept,
    classifier_names,
    layer_scales,
    parameter_groups,
    undecayed,
)


@pytest.fixture(scope="module")
def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5)


def rates(groups, network):
    """Name of each parameter and the (lr, weight decay) of its group."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {names[parameter]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}


def test_norms_biases_and_what_timm_lists_get_no_decay(vit):
    spared = undecayed(vit)

    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"} <= spared
    assert not {"head.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} & spared


def test_a_network_within_another_is_asked_too(vit):
    spared = undecayed(nn.Sequential(vit, nn.Linear(5, 2)))

    assert {f"0.{name}" for name in undecayed(vit)} | {"1.bias"} == spared


def test_decay_by_hand_on_a_small_network():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    groups = parameter_groups(network.named_parameters(), 0.1, 0.05, undecayed(network))

    assert rates(groups, network) == {
        "0.weight": (0.1, 0.05),
        "0.bias": (0.1, 0.0),
        "1.weight": (0.1, 0.0),
        "1.bias": (0.1, 0.0),
        "2.weight": (0.1, 0.05),
    }


def test_neutral_settings_make_one_group_of_all_parameters_in_order(vit):
    (group,) = parameter_groups(vit.named_parameters(), 0.1, 0.05)

    assert all(a is b for a, b in zip(group["params"], vit.parameters(), strict=True))


def test_an_optimizer_without_decay_needs_no_second_group(vit):
    assert len(parameter_groups(vit.named_parameters(), 0.1, 0.0, undecayed(vit))) == 1


def test_frozen_parameters_are_in_no_group():
    network = nn.Linear(2, 2)
    network.weight.requires_grad_(False)

    assert rates(parameter_groups(network.named_parameters(), 0.1, 0.0), network) == {"bias": (0.1, 0.0)}


def test_layers_count_from_the_classifier_down(vit):
    """Layers of this network: embedding 0, blocks 1 to 3 (the norm goes with block 3), classifier 4."""
    scales = layer_scales(vit, 0.5)

    assert scales["cls_token"] == scales["patch_embed.proj.weight"] == 0.5**4
    assert scales["blocks.0.mlp.fc1.weight"] == 0.5**3
    assert scales["blocks.2.mlp.fc1.weight"] == scales["norm.weight"] == 0.5
    assert scales["head.weight"] == 1.0


def test_the_head_multiple_is_the_head_alone(vit):
    assert layer_scales(vit, head_lr_multiple=10.0) == {"head.weight": 10.0, "head.bias": 10.0}
    assert layer_scales(vit) == {}


def test_rates_stand_in_the_optimizer_and_one_group_has_one_rate_and_decay(vit):
    scales = layer_scales(vit, 0.5, head_lr_multiple=4.0)
    optimizer = torch.optim.AdamW(parameter_groups(vit.named_parameters(), 0.1, 0.05, undecayed(vit), scales))
    found = rates(optimizer.param_groups, vit)

    assert found["head.weight"] == (pytest.approx(0.4), 0.05)
    assert found["head.bias"] == (pytest.approx(0.4), 0.0)
    assert found["blocks.0.norm1.bias"] == (pytest.approx(0.1 * 0.5**3), 0.0)
    assert len(found) == len(list(vit.parameters()))
    assert len(optimizer.param_groups) == len(set(found.values())) == 10


@pytest.mark.parametrize(
    "schedule",
    [lambda o: CosineAnnealingLR(o, 8), lambda o: LambdaLR(o, lambda step: min(1.0, step / 4))],
    ids=["cosine", "warm-up from zero"],
)
def test_a_schedule_keeps_the_proportions(schedule, vit):
    groups = parameter_groups(vit.named_parameters(), 0.1, 0.0, scales=layer_scales(vit, 0.5))
    before = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups)
    scheduler = schedule(optimizer)
    check_rates_kept(optimizer, before, scheduler)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    after = [group["lr"] for group in optimizer.param_groups]

    assert after[0] != pytest.approx(before[0])
    assert [a / after[0] for a in after] == pytest.approx([b / before[0] for b in before])


def test_one_rate_for_all_groups_is_refused(vit):
    groups = parameter_groups(vit.named_parameters(), 0.1, 0.0, scales=layer_scales(vit, 0.5))
    before = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups)

    with pytest.raises(ValueError, match="OneCycleLR gives all parameter groups one learning rate of its own"):
        check_rates_kept(optimizer, before, OneCycleLR(optimizer, max_lr=0.1, total_steps=9))


def test_one_cycle_with_a_rate_for_each_group_is_accepted(vit):
    groups = parameter_groups(vit.named_parameters(), 0.1, 0.0, scales=layer_scales(vit, 0.5))
    before = [group["lr"] for group in groups]
    optimizer = torch.optim.SGD(groups)

    check_rates_kept(optimizer, before, OneCycleLR(optimizer, max_lr=before, total_steps=9))


def test_classifiers_of_one_and_of_two_layers_are_known(vit):
    distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, depth=1)

    assert classifier_names(vit) == ("head.",)
    assert classifier_names(distilled) == ("head.", "head_dist.")
    assert classifier_names(nn.Linear(1, 1)) == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_decay": 0.5}, "layer_decay=0.5 needs a network with timm's group_matcher; Linear has none"),
        ({"head_lr_multiple": 2.0}, "head_lr_multiple=2.0 needs a timm network with a classifier; Linear has none"),
    ],
)
def test_a_network_that_does_not_name_its_layers_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        layer_scales(nn.Linear(1, 1), **settings)
