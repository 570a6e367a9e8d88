"""HeadFirst equals a loop of two phases written by hand, bit for bit, and finds the head of modules of many kinds.

The seam (resume, several processes, undo) is proved in `hooks/test_freezing.py`, the rest in `conformance/`.
"""

import logging
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch import Callback, LightningModule
from torch import nn

from lightning_vision import main
from lightning_vision.callbacks import HeadFirst
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer


def train_loader():
    return ResumableLoader(labelled_images(60), 6)


class AdamW(Plain):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def fitted(callback, kind=Plain, **options):
    module = seeded(kind)
    torch.manual_seed(5)
    quiet_trainer(callbacks=[callback], **{"max_epochs": 3} | options).fit(module, train_loader())
    return module


def by_hand(epochs, kind=Plain, accumulate=1, mutant=""):
    """Two phases: the head on features that stand still, then everything; three epochs of ten batches."""
    module = seeded(kind)
    torch.manual_seed(5)
    trunk, head = module.network[:-1], module.network[-1]
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made
    schedule = made["lr_scheduler"]["scheduler"] if isinstance(made, dict) else None
    loader = train_loader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        for number, (image, target) in enumerate(loader):
            alone = epoch < epochs or (mutant == "one step late" and epoch == epochs and number == 0)
            trunk.train(not alone or mutant == "batch norm trains")
            if number % accumulate == 0:
                optimizer.zero_grad()
            if alone and mutant != "momentum of the trunk":
                with torch.no_grad():
                    features = trunk(image)
                loss = F.cross_entropy(head(features), target)
            else:
                loss = F.cross_entropy(module.network(image), target)
            (loss / accumulate).backward()
            if (number + 1) % accumulate and number < len(loader) - 1:
                continue
            if alone and mutant == "weight decay reaches the trunk":
                for parameter in trunk.parameters():
                    parameter.grad = torch.zeros_like(parameter)
            if alone and mutant == "momentum of the trunk":
                before = [it.detach().clone() for it in trunk.parameters()]
                optimizer.step()
                with torch.no_grad():
                    for parameter, value in zip(trunk.parameters(), before, strict=True):
                        parameter.copy_(value)
            else:
                optimizer.step()
            if schedule is not None:
                schedule.step()
    return module.state_dict()


@pytest.mark.parametrize(
    ("kind", "accumulate"), [(Plain, 1), (AdamW, 1), (Plain, 4)], ids=["momentum", "adamw", "accumulate, short window"]
)
def test_it_equals_a_loop_of_two_phases(kind, accumulate):
    module = fitted(HeadFirst(epochs=2), kind, accumulate_grad_batches=accumulate)

    assert distance(module.state_dict(), by_hand(2, kind, accumulate)) == 0.0


@pytest.mark.parametrize(
    "mutant", ["batch norm trains", "one step late", "weight decay reaches the trunk", "momentum of the trunk"]
)
def test_a_wrong_loop_is_noticed(mutant):
    module = fitted(HeadFirst(epochs=1))

    assert distance(module.state_dict(), by_hand(1, mutant=mutant)) > 1e-5


def test_in_the_first_phase_trunk_and_statistics_stand_still_and_the_head_moves():
    before = seeded(Plain).state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing else ever trains
        after = fitted(HeadFirst(epochs=3)).state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}

    assert moved == {"network.5.weight", "network.5.bias"}


def test_without_epochs_it_is_the_plain_run():
    assert distance(fitted(HeadFirst(epochs=0)).state_dict(), by_hand(0)) == 0.0


def test_the_optimizer_holds_every_parameter_from_the_start_and_keeps_nothing_of_frozen_ones():
    module, held, known = seeded(AdamW), [], []

    class Look(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (optimizer,) = trainer.optimizers
            held.append([len(group["params"]) for group in optimizer.param_groups])
            known.append(len(optimizer.state))

    quiet_trainer(callbacks=[HeadFirst(epochs=1), Look()], max_epochs=2).fit(module, train_loader())

    assert held == [[6], [6]]
    assert known == [2, 6]


class Holds(LightningModule):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def small_timm(**options):
    return timm.create_model("resnet10t", num_classes=3, **options)


def compiled():
    return torch.compile(small_timm(), backend="eager")


def distilled():
    return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, depth=1, embed_dim=12, num_heads=1)


MODULES = {
    "timm": (lambda: {"network": small_timm()}, ("network.fc",)),
    "timm, compiled": (lambda: {"network": compiled()}, ("network.fc",)),
    "timm, two heads of one network": (lambda: {"network": distilled()}, ("network.head", "network.head_dist")),
    "no classifier in timm's": (
        lambda: {"backbone": timm.create_model("resnet10t", num_classes=0), "head": nn.Linear(512, 3)},
        ("head",),
    ),
    "torchvision resnet": (lambda: {"model": torchvision.models.resnet18(num_classes=3)}, ("model.fc",)),
    "torchvision mobilenet": (
        lambda: {"model": torchvision.models.mobilenet_v3_small(num_classes=3)},
        ("model.classifier",),
    ),
    "the outermost of a name": (
        lambda: {"model": torchvision.models.googlenet(num_classes=3, init_weights=False)},
        ("model.fc",),
    ),
    "last linear": (lambda: {"net": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 3))}, ("net.2",)),
}


@pytest.mark.parametrize("case", MODULES)
def test_it_finds_the_classifier(case, compiler):
    make, expected = MODULES[case]
    callback = HeadFirst()
    callback.plan(Holds(**make()), epochs=None)

    assert callback.trained(0) == expected
    assert callback.trained(1) is None


UNCLEAR = {
    "two networks": {"student": small_timm, "twin": small_timm},
    "a head beside a whole network": {"backbone": small_timm, "head": lambda: nn.Linear(3, 3)},
    "the last layer is none": {"net": lambda: nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))},
    "a single layer": {"net": lambda: nn.Linear(3, 3)},
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_is_not_clear_is_refused_with_the_parts_of_the_module(case):
    module = Holds(**{name: make() for name, make in UNCLEAR[case].items()})

    with pytest.raises(
        ValueError, match=rf"not clear .*head=.*the parts of the module are {', '.join(UNCLEAR[case])}\."
    ):
        HeadFirst().plan(module, epochs=None)


def test_a_frozen_teacher_is_no_second_classifier():
    callback = HeadFirst()
    callback.plan(Holds(student=small_timm(), teacher=small_timm().requires_grad_(False)), epochs=None)

    assert callback.trained(0) == ("student.fc",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": -1}, "HeadFirst: epochs is -1; give a whole number of at least 0."),
        ({"epochs": 0.5}, "HeadFirst: epochs is 0.5; give a whole number of at least 0."),
        ({"head": []}, r"HeadFirst: head is \[\]; give a name, a list of names, or None to have it found."),
        ({"head": "."}, "HeadFirst: head is '.'; give a name, a list of names, or None to have it found."),
        ({"head": [3]}, r"HeadFirst: head is \[3\]; give a name, a list of names, or None to have it found."),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        HeadFirst(**settings)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("fc", "head names 'fc', and no parameter of Plain has a name that begins so; the parts of the module are net"),
        (["network.5", "netw"], "head names 'netw', and no parameter of Plain"),
        ("network", "head names all parameters of Plain, so nothing would be frozen"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_before_training(head, message):
    module = seeded(Plain)

    with pytest.raises(ValueError, match=message):
        quiet_trainer(callbacks=[HeadFirst(head=head)], max_epochs=1).fit(module, train_loader())

    assert distance(module.state_dict(), seeded(Plain).state_dict()) == 0.0


def test_a_named_head_trains_alone_wherever_it_lies():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = fitted(HeadFirst(epochs=9, head=["network.0.", "network.5.bias"]))
    before = seeded(Plain).state_dict()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}

    assert moved == {"network.0.weight", "network.0.bias", "network.5.bias"}


class FrozenHead(Plain):
    def __init__(self):
        super().__init__()
        self.network[-1].requires_grad_(False)


class FrozenTrunk(Plain):
    def __init__(self):
        super().__init__()
        self.network[:-1].requires_grad_(False)


def test_a_module_that_froze_its_head_is_refused_and_one_that_froze_the_rest_is_told():
    with pytest.raises(ValueError, match=r"all parameters of network.5 are frozen by FrozenHead itself"):
        quiet_trainer(callbacks=[HeadFirst(head="network.5")], max_epochs=1).fit(FrozenHead(), train_loader())
    module = FrozenTrunk()
    with pytest.warns(UserWarning, match="FrozenTrunk has frozen all but network.5 itself, so nothing will be thawed"):
        quiet_trainer(callbacks=[HeadFirst()], max_epochs=2).fit(module, train_loader())

    assert [name for name, it in module.named_parameters() if it.requires_grad] == [
        "network.5.weight",
        "network.5.bias",
    ]


def test_a_training_that_ends_too_early_is_warned_of():
    with pytest.warns(UserWarning, match="training has max_epochs=2 and the head trains alone for the first 2 epochs"):
        quiet_trainer(callbacks=[HeadFirst(epochs=2)], max_epochs=2).fit(seeded(Plain), train_loader())


def test_what_trains_is_said_once(caplog):
    with caplog.at_level(logging.INFO):
        fitted(HeadFirst(epochs=1))
    said = [it.message for it in caplog.records if it.message.startswith("HeadFirst")]

    assert said == ["HeadFirst: for 1 epoch the head trains alone: network.5, 2 of 6 parameters."]


def test_from_the_command_line_the_shipped_file_trains_the_head_of_the_shipped_module(tmp_path):
    files = ["--config", "classification/digits", "--config", "callbacks/head_first"]
    short = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    result = main(["fit", *files, *short, "--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "cpu"])
    state = torch.load(result.best_ckpt, weights_only=True)["callbacks"]

    assert [key for key in state if key.startswith("HeadFirst")] == []
