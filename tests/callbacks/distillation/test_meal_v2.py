"""MEAL V2: its divergence against torch's, training against a loop written by hand, and a student that it improves.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from sklearn.datasets import load_digits
from torch import Generator, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_vision.callbacks import MEALV2
from lightning_vision.callbacks.distillation.kd_loss import kd_loss, mean_logits
from lightning_vision.callbacks.distillation.meal_v2 import AnswerDiscriminator, discriminator_loss, reverse_gradient
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.trainers import quiet_trainer


def loader():
    return ResumableLoader(labelled_images(60), 6)


def networks(count=2):
    """Teachers of other weights than the student's, whose batch norm has seen something and which have dropout."""
    made = []
    for seed in range(count):
        torch.manual_seed(10 + seed)
        made.append(small_network())
        made[-1](labelled_images(60).tensors[0])
    return made


def trained(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options)
    trainer.fit(module, loader())
    return module


def two_answers(count=8, classes=5):
    draws = Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, count, classes, generator=draws, dtype=torch.float64)
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_row_14_a_single_teacher_without_discriminator_is_torchs_divergence(temperature):
    student, teacher = two_answers()
    found = kd_loss(student, mean_logits([teacher], temperature), temperature)
    divergence = nn.KLDivLoss(reduction="batchmean")
    theirs = divergence((student / temperature).log_softmax(dim=1), (teacher / temperature).softmax(dim=1))

    assert torch.allclose(temperature**2 * theirs, found, rtol=1e-12)


def test_row_14_a_single_teacher_without_discriminator_is_soft_cross_entropy_up_to_the_teachers_entropy():
    student, teacher = two_answers()
    found = kd_loss(student, mean_logits([teacher], 1.0), 1.0)
    soft = F.cross_entropy(student, teacher.softmax(dim=1))
    entropy = torch.distributions.Categorical(logits=teacher).entropy().mean()
    gradients = [torch.autograd.grad(it, student)[0] for it in (found, soft)]

    assert torch.allclose(soft - entropy, found, rtol=1e-12)
    assert torch.allclose(*gradients, rtol=1e-10)
    assert entropy > 0.1


def test_row_14_a_student_that_is_the_mean_teacher_has_no_gradient():
    draws = Generator().manual_seed(0)
    teachers = [3 * torch.randn(8, 5, generator=draws, dtype=torch.float64) for _ in range(3)]
    mean = torch.stack([it.softmax(dim=1) for it in teachers]).mean(dim=0)
    student = mean.log().requires_grad_()
    loss = kd_loss(student, mean_logits(teachers), 1.0)
    (gradient,) = torch.autograd.grad(loss, student)
    (of_another,) = torch.autograd.grad(kd_loss(student, mean_logits(teachers[:2]), 1.0), student)

    assert loss.item() == pytest.approx(0.0, abs=1e-15)
    assert gradient.abs().max() < 1e-15
    assert of_another.abs().max() > 1e-3


def test_the_mean_of_probabilities_is_not_that_of_logits():
    _, teacher = two_answers()
    teachers = [teacher, teacher.flip(0)]
    by_logits = torch.stack(teachers).mean(dim=0)

    assert (mean_logits(teachers).softmax(dim=1) - by_logits.softmax(dim=1)).abs().max() > 0.05


def seeded_discriminator(classes, width, seed):
    """As it is made where torch's stream begins with the seed; the stream of the test goes on as if it were not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AnswerDiscriminator(classes, width)


def by_hand(teachers, settings, mutant=""):
    """Two epochs of SGD by hand: KL to the mean softmax, and a discriminator that one descends and the other climbs."""
    temperature, weight, adversarial, hard = settings
    torch.manual_seed(0)
    module = Plain()
    torch.manual_seed(1)
    judge = seeded_discriminator(10, 64, 0)
    steps = [torch.optim.SGD(it.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3) for it in (module, judge)]
    schedules = [torch.optim.lr_scheduler.StepLR(it, 5, gamma=0.8) for it in steps]
    for teacher in teachers:
        teacher.train(mutant == "teachers in train mode")
    data = loader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            logits = module(image)
            with torch.no_grad():
                soft = torch.stack([(teacher(image) / temperature).softmax(dim=1) for teacher in teachers])
                soft = soft[:1].mean(dim=0) if mutant == "one teacher" else soft.mean(dim=0)
            ours = (logits / temperature).log_softmax(dim=1)
            divergence = temperature**2 * (soft * (soft.log() - ours)).sum(dim=1).mean()
            sides = [logits.log_softmax(dim=1), (temperature * soft.log()).log_softmax(dim=1)]
            # -log(1 - D) of the student, -log(D) of the teacher, half of each.
            told = (F.softplus(judge(sides[0])).mean() + F.softplus(-judge(sides[1])).mean()) / 2
            own = F.cross_entropy(logits, target)
            sign = 1 if mutant == "both descend" else -1
            for step in steps:
                step.zero_grad()
            (hard * own + weight * divergence + sign * adversarial * told).backward(retain_graph=True)
            judge.zero_grad()
            (adversarial * told).backward(inputs=list(judge.parameters()))
            for step, schedule in zip(steps, schedules, strict=True):
                step.step()
                schedule.step()
    return module.state_dict()


SETTINGS = (2.0, 0.7, 5.0, 0.3)


def ours(**changed):
    keys = ("temperature", "weight", "discriminator_weight", "hard_weight")
    return MEALV2(teacher=networks(), **dict(zip(keys, SETTINGS, strict=True)) | changed)


def test_training_equals_a_loop_by_hand():
    module = trained(ours())

    assert distance(by_hand(networks(), SETTINGS), module.state_dict()) < 5e-6


@pytest.mark.parametrize("mutant", ["both descend", "one teacher", "teachers in train mode"])
def test_a_wrong_loop_is_noticed(mutant):
    assert distance(by_hand(networks(), SETTINGS, mutant), by_hand(networks(), SETTINGS)) > 1e-4


def test_without_labels_they_can_be_anything():
    """The module's own loss counts for nothing, so a run on other labels is the same run."""

    class Shuffled(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0], batch[1].flip(0)), batch_idx)

    settings = {"teacher": networks(), "discriminator_weight": 0.5}
    module, shuffled = trained(MEALV2(**settings)), trained(MEALV2(**settings), kind=Shuffled)

    assert distance(shuffled.state_dict(), module.state_dict()) == 0.0
    assert distance(trained(MEALV2(**settings, hard_weight=1.0)).state_dict(), module.state_dict()) > 1e-3


def test_row_14_teachers_stay_as_they_are_in_evaluation_mode_and_get_no_gradient():
    teachers = networks()
    before = [{name: it.clone() for name, it in teacher.state_dict().items()} for teacher in teachers]
    modes = []
    for teacher in teachers:
        teacher.register_forward_hook(lambda it, _, out: modes.append((it.training, out.requires_grad)))
    module = trained(MEALV2(teacher=teachers))
    names = [name for name, _ in module.named_parameters()]

    assert {(False, False)} == set(modes)
    assert [distance(kept, it.state_dict()) for kept, it in zip(before, teachers, strict=True)] == [0.0, 0.0]
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())
    assert [name for name, _ in Plain().named_parameters()] == names


def test_the_gradient_is_turned_round_for_the_student_alone():
    student, teacher = two_answers()
    judge = seeded_discriminator(5, 8, 0).double()
    nn.init.normal_(judge[4].weight, generator=Generator().manual_seed(1))
    answers = torch.cat([student, teacher]).log_softmax(dim=1)
    labels = torch.tensor([0.0] * 8 + [1.0] * 8, dtype=torch.float64)
    plain = F.binary_cross_entropy_with_logits(judge(answers), labels)
    found = discriminator_loss(judge, student, teacher)
    (expected,), (turned,) = (torch.autograd.grad(it, student, retain_graph=True) for it in (plain, found))
    weights = list(judge.parameters())

    assert torch.allclose(plain, found)
    assert torch.allclose(-expected, turned)
    assert expected.abs().max() > 1e-4
    assert all(map(torch.allclose, torch.autograd.grad(plain, weights), torch.autograd.grad(found, weights)))


def test_the_discriminator_begins_undecided():
    judge = seeded_discriminator(10, 16, 0)
    student = torch.randn(4, 10, generator=Generator().manual_seed(0)).requires_grad_()
    loss = discriminator_loss(judge, student, torch.zeros(4, 10))
    loss.backward()

    assert loss.item() == pytest.approx(math.log(2))
    assert student.grad.abs().max() == 0.0
    assert judge[4].weight.grad.abs().max() > 0
    assert [tuple(judge[place].weight.shape) for place in (0, 2, 4)] == [(16, 10), (4, 16), (1, 4)]


def test_the_discriminator_is_drawn_from_the_seed():
    """Twice the same, another by another seed, and the run's own stream sees nothing: its dropout is as ever."""
    found = [
        trained(MEALV2(teacher=networks(), discriminator_weight=5.0, seed=seed), max_epochs=1) for seed in (0, 0, 1)
    ]
    first, again, other = (it.state_dict() for it in found)

    assert distance(again, first) == 0.0
    assert distance(other, first) > 1e-5


def test_a_run_in_half_precision_throughout_has_a_discriminator_of_its_kind():
    callback = MEALV2(teacher=networks(), discriminator_weight=5.0)
    trained(callback, precision="bf16-true", max_epochs=1)

    assert {it.dtype for it in callback.state_dict()["parts"]["discriminator"].values()} == {torch.bfloat16}


def test_a_turned_gradient_leaves_the_value():
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = reverse_gradient(x)
    y.pow(2).sum().backward()

    assert torch.equal(x, y)
    assert x.grad.tolist() == [-2.0, 4.0]


BAD = [
    ({"weight": -1.0}, "MEALV2: weight is -1.0; give a finite number of at least 0."),
    (
        {"discriminator_weight": float("inf")},
        "MEALV2: discriminator_weight is inf; give a finite number of at least 0.",
    ),
    ({"hard_weight": -0.5}, "MEALV2: hard_weight is -0.5; give a finite number of at least 0."),
    ({"temperature": 0.0}, "MEALV2: temperature is 0.0; give a number above 0."),
    ({"discriminator_width": 0}, "MEALV2: discriminator_width is 0; give a whole number of at least 1."),
    ({"teacher": []}, "MEALV2: teacher is an empty list; give at least one."),
    ({"seed": 0.5}, "MEALV2: seed is 0.5; give a whole number of at least 0."),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        MEALV2(**{"teacher": "teacher.ckpt"} | settings)

    assert str(refusal.value) == sentence


class Digits(LightningModule):
    """A network of one hidden layer, SGD as in the paper: momentum, no weight decay."""

    def __init__(self, width, lr):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        self.lr = lr

    def forward(self, image):
        return self.network(image)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


@pytest.mark.parametrize("seed", [0, *(pytest.param(it, marks=pytest.mark.slow) for it in range(1, 5))])
def test_row_14_digits_a_small_student_improves_with_wider_teachers(seed):
    """Width 32 has learned ten digits a class; two of width 256, which learned 1,000, tell it of those without labels.

    It gains on 797 others, and more than by as many steps with its own labels.
    """
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=Generator().manual_seed(1))
    images, labels = torch.from_numpy(pixels).float()[order].view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)[order]
    few = torch.cat([(labels[:1000] == digit).nonzero()[:10, 0] for digit in range(10)])

    def fitted(module, chosen, epochs, size, *callbacks):
        torch.manual_seed(seed)
        data = DataLoader(TensorDataset(images[chosen], labels[chosen]), size, shuffle=True)
        quiet_trainer(max_epochs=epochs, callbacks=list(callbacks)).fit(module, data)
        return module

    def accuracy(module):
        return (module(images[1000:]).argmax(dim=1) == labels[1000:]).double().mean().item()

    def made(width, lr, number):
        torch.manual_seed(100 * seed + number)
        return Digits(width, lr)

    everything = torch.arange(1000)
    teachers = [fitted(made(256, 0.1, number), everything, 10, 100).network for number in (1, 2)]
    student = fitted(made(32, 0.1, 0), few, 30, 50)
    before = accuracy(student)
    student.lr = 0.05
    by_labels = fitted(copy.deepcopy(student), few, 50, 50)
    taught = fitted(copy.deepcopy(student), everything, 10, 100, MEALV2(teachers))

    assert accuracy(taught) > before + 0.02
    assert accuracy(taught) > accuracy(by_labels) + 0.01
