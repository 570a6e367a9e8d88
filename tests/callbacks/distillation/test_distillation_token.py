"""Each head learns from its own teacher alone, training equals a loop by hand, and nothing of timm's network changes.

Conformance proves resuming, two processes, precision and undo on a network with one head; here it has two.
"""

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_vision.callbacks import DefensiveDistillation, DistillationToken, MixUp
from lightning_vision.callbacks.distillation.distillation_token import hard_distillation_loss
from lightning_vision.callbacks.distillation.effective_numbers import effective_number_weights
from lightning_vision.callbacks.distillation.kd_loss import kd_loss
from support.compare import distance
from support.data import ResumableLoader, labelled_images, plain_loader
from support.modules import Plain
from support.trainers import quiet_trainer

COUNTS = [50, 30, 20, 12, 8, 6, 4, 3, 2, 1]


def two_headed():
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "in_chans": 1}
    return timm.create_model("deit_tiny_distilled_patch16_224", num_classes=10, **sizes)


class Student(LightningModule):
    """As one writes it around a network of timm's; keeps what its own loss says of the other head."""

    def __init__(self):
        super().__init__()
        self.network = two_headed()
        self.foreign = []

    def forward(self, image):
        return self.network(image)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        others = list(self.network.head_dist.parameters())
        self.foreign += torch.autograd.grad(loss, others, retain_graph=True, allow_unused=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def teacher():
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 10))


def student(kind=Student):
    torch.manual_seed(0)
    return kind()


def trained(module, *callbacks, loader=None, **options):
    torch.manual_seed(1)
    loader = ResumableLoader(labelled_images(30), 10) if loader is None else loader
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options).fit(module, loader)
    return module


def by_hand(alpha=0.5, temperature=None, beta=0.0, drw_epoch=0, mutant=""):
    """Both heads by timm's own `set_distilled_training`, the loss of the papers, two epochs of three steps."""
    module, taught = student(), teacher().eval()
    module.network.train().set_distilled_training(True)
    if mutant == "a teacher in train mode":
        taught.train()
    optimizer, loader = module.configure_optimizers(), ResumableLoader(labelled_images(30), 10)
    weights = effective_number_weights(COUNTS, beta)
    torch.manual_seed(1)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            own, other = module.network(image)
            if mutant == "averaged heads":
                own = (own + other) / 2
            with torch.no_grad():
                logits = taught(image)
            decided = target if mutant == "the labels" else logits.argmax(1)
            one = (-other.log_softmax(1)).gather(1, decided[:, None])[:, 0]
            each = weights[decided] if epoch >= drw_epoch else torch.ones(len(one))
            term = (each * one).sum() / (len(one) if mutant == "a plain mean" else each.sum())
            if temperature is not None:
                soft, ours = ((it / temperature).softmax(1) for it in (logits, other))
                term = temperature**2 * (soft * (soft / ours).log()).sum(1).mean()
            optimizer.zero_grad()
            ((1 - alpha) * F.cross_entropy(own, target) + alpha * term).backward()
            optimizer.step()
    return module.state_dict()


SETTINGS = [
    {},
    {"alpha": 0.9},
    {"temperature": 3.0},
    {"beta": 0.99},
    {"beta": 0.99, "drw_epoch": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_training_equals_a_loop_by_hand(settings):
    module = trained(student(), DistillationToken(teacher(), class_counts=COUNTS, **settings))

    assert distance(by_hand(**settings), module.state_dict()) < 1e-6


MUTANTS = ["averaged heads", "the labels", "a teacher in train mode", "a plain mean"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_token_is_noticed(mutant):
    assert distance(by_hand(beta=0.99), by_hand(beta=0.99, mutant=mutant)) > 1e-3


def test_row_225_the_class_loss_gives_the_distillation_head_no_gradient():
    module = trained(student(), DistillationToken(teacher()))

    assert module.foreign == [None] * len(module.foreign) != []


def test_row_225_the_distillation_loss_gives_the_class_head_no_gradient():
    """With all weight on the distillation head, the class head stays to the last bit; without the callback it moves."""
    before = student().network.head.state_dict()
    module = trained(student(), DistillationToken(teacher(), alpha=1.0))

    assert distance(before, module.network.head.state_dict()) == 0.0
    assert distance(student().network.head_dist.state_dict(), module.network.head_dist.state_dict()) > 1e-3
    assert distance(before, trained(student()).network.head.state_dict()) > 1e-3


def test_row_225_before_drw_epoch_weights_are_one():
    late, off = ({"beta": 0.99, "drw_epoch": 2, "class_counts": COUNTS}, {})
    deferred, plain = (trained(student(), DistillationToken(teacher(), **it)).state_dict() for it in (late, off))
    at_once = trained(student(), DistillationToken(teacher(), beta=0.99, class_counts=COUNTS)).state_dict()

    assert distance(deferred, plain) == 0.0
    assert distance(deferred, at_once) > 1e-3


class Watched(nn.Sequential):
    """A teacher that tells what it is shown, and how."""

    def forward(self, image):
        if len(image) > 2:
            self.seen.append((image.clone(), self.training, torch.is_grad_enabled()))
        return super().forward(image)


def test_row_225_the_teacher_is_frozen_in_evaluation_mode_and_sees_the_students_images():
    watched = Watched(*teacher())
    watched.seen, shown = [], []
    before = copy.deepcopy(watched.state_dict())
    module = student()
    module.network.register_forward_pre_hook(
        lambda _, args: shown.append(args[0].clone()) if len(args[0]) > 2 else None
    )
    trained(module, DistillationToken(watched), MixUp(alpha=1.0, seed=0), max_epochs=1)

    assert all(torch.equal(a, b) for a, (b, _, _) in zip(shown, watched.seen, strict=True)) and len(shown) == 3
    assert {(training, gradients) for _, training, gradients in watched.seen} == {(False, False)}
    assert distance(before, watched.state_dict()) == 0.0


def test_evaluation_files_and_the_network_stay_timms():
    module = trained(student(), DistillationToken(teacher()))
    plain = two_headed()
    plain.load_state_dict(module.network.state_dict())
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    assert module.state_dict().keys() == student().state_dict().keys()
    assert module.network.distilled_training is False
    for mode in (True, False):
        assert torch.equal(plain.train(mode)(images), module.network.train(mode)(images))
    parts = (module.network, module.network.head, module.network.head_dist)
    assert [it._forward_hooks for it in parts] == [{}] * 3


def test_a_validation_in_the_fit_averages_both_heads():
    module, callback, seen = student(), DistillationToken(teacher()), []
    step = module.validation_step

    def validate(batch, batch_idx):
        with torch.no_grad():
            tokens = module.network.forward_features(batch[0])
            heads = module.network.head(tokens[:, 0]), module.network.head_dist(tokens[:, 1])
            seen.append((module(batch[0]) - sum(heads) / 2).abs().max().item())
        return step(batch, batch_idx)

    module.validation_step = validate
    quiet_trainer(callbacks=[callback], max_epochs=1).fit(module, plain_loader(20), plain_loader(12))

    assert max(seen) < 1e-6 and len(seen) >= 2


class OneHead(Plain):
    def __init__(self):
        super().__init__(dropout=0.0)


def one_head_by_hand():
    module, taught = student(OneHead).train(), teacher().eval()
    torch.random.default_generator.manual_seed(7)
    head = nn.Linear(36, 10)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    optimizer.param_groups[0]["params"] += list(head.parameters())
    loader = ResumableLoader(labelled_images(30), 10)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for image, target in loader:
            features = module.network[:-1](image)
            decided = taught(image).argmax(1)
            own, other = module.network[-1](features), head(features)
            optimizer.zero_grad()
            (F.cross_entropy(own, target) / 2 + F.cross_entropy(other, decided) / 2).backward()
            optimizer.step()
            schedule.step()
    return module.state_dict()


def test_a_network_with_one_head_gets_another_while_it_trains():
    with pytest.warns(UserWarning, match="so a second head beside 'network.5' learns from the teacher"):
        module = trained(student(OneHead), DistillationToken(teacher(), seed=7))

    assert distance(one_head_by_hand(), module.state_dict()) < 1e-6
    assert module.state_dict().keys() == Plain().state_dict().keys()
    assert distance(trained(student(OneHead)).state_dict(), module.state_dict()) > 1e-2


def test_two_ranks_end_with_one_network(two_ranks):
    def found():
        rank = torch.distributed.get_rank()
        options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
        callback = DistillationToken(teacher(), beta=0.9, class_counts=COUNTS)
        module = trained(student(), callback, loader=ResumableLoader(labelled_images(24), 6, rank, 2), **options)
        return torch.cat([it.detach().flatten() for it in module.parameters()])

    first, second = two_ranks(found)

    assert torch.equal(first, second)


def test_counts_come_from_the_training_set_where_nobody_gives_them():
    data = labelled_images(200)
    counts = data.tensors[1].bincount(minlength=10).tolist()
    told = DistillationToken(teacher(), beta=0.9)
    given = DistillationToken(teacher(), beta=0.9, class_counts=counts)
    asked = [trained(student(), it, loader=plain_loader(200, 50), max_epochs=1).state_dict() for it in (told, given)]

    assert distance(*asked) == 0.0


def test_the_hard_loss_is_the_soft_one_of_a_teacher_that_is_certain():
    draws = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 8, 5, generator=draws)

    assert torch.allclose(kd_loss(ours, theirs * 1e4, 1.0), hard_distillation_loss(ours, theirs))


class Skips(Student):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else loss


def test_a_fit_whose_last_batch_has_no_loss_leaves_nothing_of_it_in_the_callback():
    callback = DistillationToken(teacher())
    trained(student(Skips), callback, max_epochs=1)
    again = trained(student(), copy.deepcopy(callback)).state_dict()

    assert distance(trained(student(), DistillationToken(teacher())).state_dict(), again) == 0.0


class SkipsTheHead(Student):
    """Asks both heads in a step that has no loss, and in the next one only the first."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self(batch[0])
            return None
        self.network.forward_head = lambda tokens: self.network.head(tokens[:, 0])
        return F.cross_entropy(self(batch[0]), batch[1])


def test_what_a_head_said_in_a_step_without_a_loss_is_not_taken_for_a_later_one():
    with pytest.raises(
        ValueError, match=r"^DistillationToken: training_step did not call the head 'network.head_dist'"
    ):
        trained(student(SkipsTheHead), DistillationToken(teacher()), limit_train_batches=2, max_epochs=1)


def test_a_temperature_that_the_class_head_would_undo_is_refused():
    both = [DefensiveDistillation(temperature=5.0, network="network"), DistillationToken(teacher(), network="network")]
    with pytest.raises(
        ValueError, match=r"^DefensiveDistillation: DistillationToken changes what the same part of the"
    ):
        trained(student(), *both)

    # Around the network it divides what the class head said.
    outside = trained(student(), DefensiveDistillation(temperature=5.0), DistillationToken(teacher())).state_dict()
    assert distance(outside, by_hand()) > 1e-3


@pytest.mark.parametrize("targets", [["cat"] * 30, [{"boxes": 1}] * 30, 7])
def test_targets_that_are_no_classes_are_not_counted(targets):
    data = labelled_images(30)
    data.targets, data.tensors = targets, data.tensors[:1]
    with pytest.raises(ValueError, match=r"^DistillationToken: how many training images each class has is not known"):
        trained(student(), DistillationToken(teacher(), beta=0.9), loader=DataLoader(data, 10))


def test_images_without_a_class_are_not_counted():
    data = labelled_images(200)
    data.targets = torch.cat([data.tensors[1], torch.full((5,), -1)]).tolist()
    counts = data.tensors[1].bincount(minlength=10).tolist()
    asked = [
        trained(student(), DistillationToken(teacher(), beta=0.9, **it), loader=DataLoader(data, 50), max_epochs=1)
        for it in ({}, {"class_counts": counts})
    ]

    assert distance(*(it.state_dict() for it in asked)) == 0.0


BAD = [
    ({"class_counts": 5}, "DistillationToken: class_counts is 5; give a list, the training images of each class."),
    (
        {"class_counts": [3, "4"]},
        "DistillationToken: one of class_counts is '4'; give a whole number of at least 0.",
    ),
    ({"alpha": 1.5}, "DistillationToken: alpha is 1.5; give a number from 0 to 1."),
    ({"beta": 1.0}, "DistillationToken: beta is 1.0; give a number from 0 to below 1."),
    ({"drw_epoch": -1}, "DistillationToken: drw_epoch is -1; give a whole number of at least 0."),
    (
        {"temperature": 2.0, "beta": 0.9},
        "DistillationToken: temperature is 2.0 and beta 0.9; give a temperature above 0 and beta 0, or no temperature, "
        "for only hard decisions are weighted.",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        DistillationToken(teacher(), **settings)

    assert str(refusal.value) == sentence


class Twice(Student):
    def __init__(self):
        super().__init__()
        self.second = two_headed()


class NoLinear(Plain):
    def __init__(self):
        super().__init__()
        self.network[5] = nn.Sequential(nn.Linear(36, 10), nn.PReLU())
        self.head = nn.Conv2d(1, 10, 8)

    def forward(self, image):
        return self.head(image).flatten(1)


REFUSED = {
    "two parts": (
        Twice,
        {},
        "DistillationToken: 2 parts of Twice are called 'head_dist' (network.head_dist, second.head_dist); name with "
        "network= the part that has one of them.",
    ),
    "no class head": (
        Student,
        {"class_head": "fc"},
        "DistillationToken: 'network.head_dist' has no class head 'fc' beside it; name it with class_head=.",
    ),
    "a typing error": (
        Student,
        {"dist_head": "head_dst"},
        "DistillationToken: Student has no part 'head_dst', and of its heads 'network.head', 'network.head_dist' which "
        "one learns from the teacher is not clear; name it with dist_head=.",
    ),
    "no linear head": (
        NoLinear,
        {},
        "DistillationToken: NoLinear has no part 'head_dist', and its only head 'head' is no Linear layer that a "
        "second one could stand beside; take a network with two heads, such as timm's deit_tiny_distilled_patch16_224, "
        "or `Distillation`.",
    ),
    "other counts": (
        Student,
        {"beta": 0.9, "class_counts": [1, 2]},
        "DistillationToken: there are training images of 2 classes and logits of 10; give class_counts=[...] with a "
        "number for each class.",
    ),
    "no counts": (
        Student,
        {"beta": 0.9},
        "DistillationToken: how many training images each class has is not known, for neither a datamodule's "
        "class_counts['train'] nor `targets` of the training set tell; give class_counts=[...], a number for each.",
    ),
    "an empty class": (
        Student,
        {"beta": 0.9, "class_counts": [3, 0]},
        "DistillationToken: class 1 has 0 training images; give at least one of every class, or leave the class out of "
        "the data.",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case):
    kind, settings, sentence = REFUSED[case]
    with warnings.catch_warnings(), pytest.raises(ValueError) as refusal:
        warnings.simplefilter("ignore")
        module = student(kind)
        # A list tells no labels.
        loader = ResumableLoader(list(labelled_images(30)), 10)
        trained(module, DistillationToken(teacher(), **settings), loader=loader)

    assert str(refusal.value) == sentence
    assert getattr(module, "foreign", []) == []
