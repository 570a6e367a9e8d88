"""Unfreeze equals a loop of phases written by hand and, with two groups, HeadFirst, bit for bit; groups are found.

Two processes and resumes are proved in `hooks/test_freezing.py`, the rest in `conformance/`.
"""

import logging

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule
from torch import nn

from lightning_vision.callbacks import HeadFirst, Unfreeze
from lightning_vision.callbacks.finetuning._groups import found_groups, thawed, whole_parts
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


def fitted(callback, epochs=4, **options):
    module = seeded(Plain)
    torch.manual_seed(5)
    quiet_trainer(callbacks=[callback], max_epochs=epochs, **options).fit(module, train_loader())
    return module.state_dict()


def by_hand(starts, epochs=4, accumulate=1, mutant=""):
    """Plain's convolution, batch norm and head, which train from the epochs `starts` on, in this order."""
    module = seeded(Plain)
    torch.manual_seed(5)
    network = module.network
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    loader = train_loader()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        awake = [epoch >= start for start in starts]
        for part, trains in zip((network[0], network[1], network[5]), awake, strict=True):
            part.train(trains)
            part.zero_grad()
            part.requires_grad_(trains)
        # Layers without parameters rest until everything around them trains.
        for part in (network[2], network[3], network[4]):
            part.train(all(awake) or mutant == "dropout is on")
        for number, (image, target) in enumerate(loader):
            if number % accumulate == 0:
                optimizer.zero_grad()
            (F.cross_entropy(network(image), target) / accumulate).backward()
            if (number + 1) % accumulate == 0 or number == len(loader) - 1:
                optimizer.step()
                schedule.step()
    return module.state_dict()


@pytest.mark.parametrize(
    ("settings", "starts"),
    [
        ({}, (2, 1, 0)),
        ({"epochs_per_group": [1, 2]}, (3, 1, 0)),
        ({"epochs_per_group": 1, "start_epoch": 1}, (3, 2, 0)),
        ({"epochs_per_group": [2, 0]}, (2, 2, 0)),
        ({"groups": ["network.1", ["network.0", "network.5*"]]}, (1, 0, 1)),
    ],
    ids=["one an epoch", "a list", "later", "two at once", "named"],
)
def test_it_equals_a_loop_of_phases(settings, starts):
    assert distance(fitted(Unfreeze(**settings)), by_hand(starts)) == 0.0


def test_it_equals_the_loop_with_accumulation_and_a_short_last_window():
    ours = fitted(Unfreeze(), accumulate_grad_batches=4)

    assert distance(ours, by_hand((2, 1, 0), accumulate=4)) == 0.0


@pytest.mark.parametrize("starts", [(2, 2, 0), (1, 1, 0), (3, 1, 0)])
def test_other_phases_are_noticed(starts):
    assert distance(fitted(Unfreeze()), by_hand(starts)) > 1e-4


def test_a_wrong_loop_is_noticed():
    assert distance(fitted(Unfreeze()), by_hand((2, 1, 0), mutant="dropout is on")) > 1e-4


@pytest.mark.parametrize("epochs", [1, 2])
def test_with_two_groups_it_is_head_first_bit_for_bit(epochs):
    ours = fitted(Unfreeze(epochs_per_group=epochs, groups=["network.5"]))

    assert distance(ours, fitted(HeadFirst(epochs=epochs))) == 0.0


def test_without_epochs_it_is_the_plain_run():
    assert distance(fitted(Unfreeze(epochs_per_group=0)), by_hand((0, 0, 0))) == 0.0


def test_the_optimizer_holds_every_parameter_from_the_start_and_states_come_as_groups_thaw():
    held, known = [], []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (optimizer,) = trainer.optimizers
            held.append([len(group["params"]) for group in optimizer.param_groups])
            known.append(len(optimizer.state))

    trainer = quiet_trainer(callbacks=[Unfreeze(), Look()], max_epochs=3)
    trainer.fit(seeded(Plain), train_loader())

    assert held == [[6]] * 3
    assert known == [2, 4, 6]


class Holds(LightningModule):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def vit():
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, embed_dim=12, num_heads=1)


VIT = [["network.head"], ["network.blocks.1", "network.norm"], ["network.blocks.0"]]
RESNET = [["fc"], ["layer4"], ["layer3"], ["layer2"], ["layer1"]]
MODULES = {
    "timm's vit": (
        lambda: {"network": vit()},
        [*VIT, ["network.patch_embed", "network.cls_token", "network.pos_embed"]],
    ),
    "timm's resnet, compiled": (
        lambda: {"network": torch.compile(timm.create_model("resnet10t", num_classes=3), backend="eager")},
        [[f"network.{it}" for it in group] for group in [*RESNET, ["conv1", "bn1"]]],
    ),
    "a classifier beside timm's network": (
        lambda: {"trunk": timm.create_model("resnet10t", num_classes=0), "own": nn.Linear(512, 3)},
        [["own"], *([f"trunk.{it}" for it in group] for group in [*RESNET[1:], ["conv1", "bn1"]])],
    ),
    "torchvision's resnet": (
        lambda: {"model": torchvision.models.resnet18(num_classes=3)},
        [[f"model.{it}" for it in group] for group in [*RESNET, ["bn1"], ["conv1"]]],
    ),
    "torchvision's vit, a parameter of its own": (
        lambda: {"model": torchvision.models.VisionTransformer(8, 4, 1, 1, 4, 4, num_classes=3)},
        [["model.heads"], ["model.encoder"], ["model.conv_proj"], ["model.class_token"]],
    ),
    "frozen parts do not count": (
        lambda: {"net": nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3))},
        [["net.2"], ["net.0"]],
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_groups_are_found_from_the_head_down(case, compiler):
    make, expected = MODULES[case]
    module = Holds(**make())
    found = [sorted(whole_parts(module, group)) for group in found_groups(module)]

    assert found == [sorted(group) for group in expected]


def test_a_dropout_between_two_layers_of_a_thawed_part_is_on_again():
    module = Holds(net=nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.Linear(3, 3))))
    callback = Unfreeze()
    callback.plan(module, epochs=None)

    assert callback.trained(0) == ("net.1",)


def test_thawing_goes_group_by_group():
    groups, ends = (("a",), ("b", "c")), (1, 3)

    assert [thawed(groups, ends, epoch) for epoch in range(4)] == [("a",), ("a", "b", "c"), ("a", "b", "c"), None]


def test_the_plan_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        fitted(Unfreeze())
    said = [it.message for it in caplog.records if it.message.startswith("Unfreeze")]

    assert said == [
        "Unfreeze: by epoch, these parts (so many parameters) train, too: from 0 network.5 (2); "
        "from 1 network.1 (2); from 2 network.0 (2)."
    ]


def test_a_training_that_ends_too_early_is_warned_of():
    with pytest.warns(UserWarning, match="max_epochs=2 and 1 of 3 groups thaw later, so they never train"):
        fitted(Unfreeze(), epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs_per_group": -1}, "Unfreeze: epochs_per_group is -1; give a whole number of at least 0."),
        ({"epochs_per_group": [1, 0.5]}, "Unfreeze: epochs_per_group is 0.5; give a whole number of at least 0."),
        (
            {"epochs_per_group": []},
            r"Unfreeze: epochs_per_group is \[\]; give a whole number, or one for each group but the last.",
        ),
        ({"start_epoch": -1}, "Unfreeze: start_epoch is -1; give a whole number of at least 0."),
        ({"groups": []}, r"Unfreeze: groups is \[\]; give a list of patterns, or None to have them found."),
        (
            {"groups": ["fc", []]},
            r"Unfreeze: groups is \['fc', \[\]\], and one of them is empty; give patterns, or leave it out.",
        ),
        ({"groups": "fc"}, "Unfreeze: groups is 'fc'; give a list of patterns, or None to have them found."),
        ({"groups": [3]}, "Unfreeze: groups is 3; give a pattern such as 'blocks.*.act', or a list of them."),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Unfreeze(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ["netwok.5"]}, "groups 'netwok.5' matches none of the parts that train; there are network.5"),
        ({"groups": ["network.5", "*.bias", "network.5.bias"]}, "'network.5.bias' names nothing that an earlier group"),
        ({"groups": ["network"]}, "all that trains of Plain is one group, so nothing would be frozen; name others"),
        ({"epochs_per_group": [1]}, "epochs_per_group has 1 numbers and there are 3 groups; give one for each but"),
    ],
)
def test_groups_that_do_not_fit_are_refused_before_training(settings, message):
    module = seeded(Plain)

    with pytest.raises(ValueError, match=message):
        quiet_trainer(callbacks=[Unfreeze(**settings)], max_epochs=1).fit(module, train_loader())

    assert distance(module.state_dict(), seeded(Plain).state_dict()) == 0.0
