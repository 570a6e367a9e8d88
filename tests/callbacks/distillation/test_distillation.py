"""Distillation equals loops by hand and a module that distils by itself, bit for bit; teachers stand still.

The seam (files, refusals, where teachers come from) is proved in `hooks/test_taught.py`, resume under all conditions,
ranks and pairs in `conformance/`.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from lightning_vision.callbacks import SAM, Distillation, MixUp
from support.compare import distance, seeded
from support.data import ResumableLoader, labelled_images
from support.modules import Plain
from support.trainers import quiet_trainer


def teacher_of(seed=9, width=8):
    """A wider network whose batch norm has seen images, so that its modes differ."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(9 * width, 10),
    )
    network(labelled_images(40, seed=3).tensors[0] * 2 + 1)
    return network


def loader():
    return ResumableLoader(labelled_images(60), 6)


def trained(*callbacks, kind=Plain, **options):
    module = seeded(kind)
    torch.manual_seed(1)
    quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options).fit(module, loader())
    return module


def kl(student, teacher, temperature=4.0):
    ours, theirs = ((it.float() / temperature).log_softmax(dim=1) for it in (student, teacher))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def by_hand(teachers, kd_weight=0.7, hard_weight=1.0, hints=0.0, accumulate=1, dtype=None, mutant=""):
    """Two epochs of ten batches; the adapter, a 1x1 convolution, is drawn from seed 3 and stepped with the rest."""
    module = seeded(Plain)
    if hints:
        torch.manual_seed(3)
        adapters = nn.ModuleList([nn.Conv2d(4, 8, 1) for _ in teachers])
        module.add_module("adapters", adapters)
    torch.manual_seed(1)
    setup = module.configure_optimizers()
    optimizer, schedule = setup["optimizer"], setup["lr_scheduler"]["scheduler"]
    teachers, data = [copy.deepcopy(it) for it in teachers], loader()
    for it in teachers:
        it.train(mutant == "a teacher in train mode")
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for number, (image, target) in enumerate(data, start=1):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                inner = module.network[:3](image)
                logits = module.network[3:](inner)
                with torch.no_grad():
                    found = [it[:3](image) for it in teachers]
                    answers = [it[3:](one) for it, one in zip(teachers, found, strict=True)]
                if len(answers) > 1:
                    each = torch.stack([(it.float() / 4).log_softmax(dim=1) for it in answers])
                    answers = [4.0 * (each.logsumexp(dim=0) - math.log(len(answers)))]
                loss = F.cross_entropy(logits, target)
                if hard_weight != 1:
                    loss = loss * hard_weight
                square = 1 if mutant == "no T^2" else 16
                loss = loss + kd_weight * (square * kl(logits, answers[0]))
                if hints:
                    apart = [
                        F.mse_loss(adapter(inner).float(), it.float()) / 2
                        for adapter, it in zip(adapters, found, strict=True)
                    ]
                    loss = loss + hints * torch.stack(apart).mean()
            (loss / accumulate).backward()
            if number % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return {name: it for name, it in module.state_dict().items() if not name.startswith("adapters")}


SETTINGS = {
    "one teacher": ({}, {}, 1),
    "Hinton's alpha 0.7 and two teachers": ({"hard_weight": 0.3}, {}, 2),
    "bf16": ({"dtype": torch.bfloat16}, {"precision": "bf16-mixed"}, 1),
    "hints and windows of two": ({"hints": 0.5, "accumulate": 2}, {"accumulate_grad_batches": 2}, 2),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_training_equals_a_loop_by_hand_bit_for_bit(case):
    settings, options, count = SETTINGS[case]
    teachers = [teacher_of(seed) for seed in range(count)]
    layers = {"layers": {"network.2": "2"}, "layer_weight": 0.5, "seed": 3} if "hints" in settings else {}
    hard = {"hard_weight": settings["hard_weight"]} if "hard_weight" in settings else {}
    ours = trained(Distillation(teachers, kd_weight=0.7, **hard, **layers), **options)

    assert distance(ours.state_dict(), by_hand(teachers, **settings)) == 0.0
    assert distance(ours.state_dict(), trained(**options).state_dict()) > 1e-3


@pytest.mark.parametrize("mutant", ["no T^2", "a teacher in train mode"])
def test_wrong_distillation_is_noticed(mutant):
    teachers = [teacher_of()]

    assert distance(by_hand(teachers, mutant=mutant), by_hand(teachers)) > 1e-3


class ByItself(Plain):
    """A module that has the teacher's term in its own step; the teacher stands in a list, as no part of it."""

    unmixed = False

    def __init__(self):
        super().__init__()
        self.teachers = [teacher_of().eval()]
        torch.manual_seed(0)
        self.network = Plain().network

    def training_step(self, batch, batch_idx):
        kept = []
        hook = self.network.register_forward_hook(lambda _, args, out: kept.append((args[0], out)))
        loss = super().training_step(batch, batch_idx)
        hook.remove()
        ((images, logits),) = kept
        if self.unmixed:
            images = images.flip(0)
        with torch.no_grad():
            answer = self.teachers[0](images)
        return loss + 0.7 * (16 * kl(logits, answer))


class WithOthersImages(ByItself):
    unmixed = True


WITH = {"SAM": lambda: [SAM(rho=0.1)], "MixUp": lambda: [MixUp(prob=1.0)], "both": lambda: [SAM(), MixUp(prob=1.0)]}


@pytest.mark.parametrize("case", WITH)
def test_the_teacher_sees_the_very_batch_of_the_student(case):
    ours = trained(Distillation(teacher_of(), kd_weight=0.7), *WITH[case](), accumulate_grad_batches=2)
    theirs = trained(*WITH[case](), kind=ByItself, accumulate_grad_batches=2)

    assert distance(ours.state_dict(), theirs.state_dict()) == 0.0


def test_a_teacher_that_sees_other_images_is_noticed():
    one, other = (trained(MixUp(prob=1.0), kind=kind).state_dict() for kind in (ByItself, WithOthersImages))

    assert distance(one, other) > 1e-3


class Asked(nn.Module):
    """Keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.network, self.images = teacher_of(), []

    def forward(self, images):
        self.images.append(images)
        return self.network(images)


class Student(Plain):
    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch[0])
        return super().training_step(batch, batch_idx)


def test_a_batch_that_is_computed_twice_is_answered_once():
    teacher = Asked()
    module = trained(Distillation(teacher), SAM(), MixUp(prob=1.0), kind=Student, accumulate_grad_batches=2)
    # The first question was asked at set-up.
    asked, seen = teacher.images[1:], list(dict.fromkeys(map(id, module.seen)))

    assert (len(asked), len(module.seen)) == (20, 40)
    assert [id(it) for it in asked] == seen


class Alike(Plain):
    """Neither noise nor statistics, and a step that moves by gradients alone."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 10))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


@pytest.mark.parametrize("loss", ["kd", "attention", "relational"])
def test_a_student_that_is_its_teacher_has_no_loss_and_no_gradient(loss):
    """But for what rounding leaves of a softmax's gradient."""
    module, teacher = seeded(Alike), seeded(Alike).network
    layers = {} if loss == "kd" else {"kd_weight": 0.0, "layers": {"network.1": "1"}, "layer_loss": loss}
    trainer = quiet_trainer(callbacks=[Distillation(teacher, hard_weight=0.0, **layers)], max_epochs=1)
    trainer.fit(module, loader())

    assert abs(float(trainer.callback_metrics[f"train/{loss}"])) < 1e-6
    assert distance(module.state_dict(), seeded(Alike).state_dict()) < 1e-5


class FirstAdapter(Callback):
    """Keeps the adapter's values as they are when training starts."""

    def on_train_start(self, trainer, pl_module):
        (own,) = (it for it in trainer.callbacks if isinstance(it, Distillation))
        self.values = copy.deepcopy(own.trained["network.2"].state_dict())


def test_adapters_move_and_teachers_never():
    teacher, first = teacher_of(), FirstAdapter()
    callback, before = Distillation(teacher, layers={"network.2": "2"}), copy.deepcopy(teacher.state_dict())
    trained(callback, first)
    after = callback.state_dict()["parts"]["network.2"]

    assert distance(before, teacher.state_dict()) == 0.0
    assert min((it - after[name]).abs().max().item() for name, it in first.values.items()) > 1e-3
    # It is its owner's again.
    assert all(part.training for part in teacher.modules()) and all(it.requires_grad for it in teacher.parameters())


BAD = [
    ({"teacher": []}, "teacher is an empty list; give at least one."),
    ({"temperature": 0}, "temperature is 0; give a number above 0."),
    ({"kd_weight": -1.0}, "kd_weight is -1.0; give a finite number of at least 0."),
    ({"hard_weight": float("inf")}, "hard_weight is inf; give a finite number of at least 0."),
    ({"loss": "mse"}, "loss is 'mse'; give one of kd, decoupled."),
    ({"layer_loss": "fsp"}, "layer_loss is 'fsp'; give one of hints, attention, relational."),
    ({"layers": ["network.2"]}, "layers is ['network.2']; give a teacher's layer for each layer, or None."),
    ({"seed": -1}, "seed is -1; give a whole number of at least 0."),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        Distillation(**{"teacher": "teacher.ckpt"} | settings)

    assert str(refusal.value) == f"Distillation: {sentence}"
