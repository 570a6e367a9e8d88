"""BD-KD: both divergences against `torch.distributions`, training against a loop written by hand.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`, the teacher that trains
along in `hooks/test_online.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from lightning_vision.callbacks import BDKD
from lightning_vision.callbacks.distillation.bd_kd import bd_kd_loss, bd_kd_teacher_loss, bd_kd_weights
from lightning_vision.callbacks.distillation.kd_loss import kd_loss
from support.compare import distance
from support.data import ResumableLoader, labelled_images
from support.modules import Plain, small_network
from support.trainers import quiet_trainer

RULES = ["share", "step", "none"]


def two_answers(count=8, classes=5):
    draws = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, count, classes, generator=draws, dtype=torch.float64)
    return student.requires_grad_(), teacher.requires_grad_()


def probabilities(logits, temperature):
    return Categorical(logits=logits.detach() / temperature)


@pytest.mark.parametrize("rule", RULES)
def test_row_208_equal_logits_give_zero_divergence_and_no_gradient(rule):
    student, _ = two_answers()
    loss = bd_kd_loss(student, student.detach().clone(), temperature=3.0, entropy_rule=rule)
    loss.backward()

    assert loss.item() == pytest.approx(0.0, abs=1e-15)
    assert student.grad.abs().max() < 1e-15


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_row_208_both_divergences_equal_those_of_torch_distributions(temperature):
    student, teacher = two_answers()
    p_s, p_t = (probabilities(it, temperature) for it in (student, teacher))
    for number in range(len(student)):
        one = (student[number : number + 1], teacher[number : number + 1])
        forward = bd_kd_loss(*one, 1.0, 0.0, temperature, "none")
        reverse = bd_kd_loss(*one, 0.0, 1.0, temperature, "none")

        assert torch.allclose(temperature**2 * kl_divergence(p_t, p_s)[number], forward, rtol=1e-12)
        assert torch.allclose(temperature**2 * kl_divergence(p_s, p_t)[number], reverse, rtol=1e-12)
        assert abs(forward - reverse) > 1e-3 * forward


@pytest.mark.parametrize("rule", RULES)
def test_row_208_equal_entropies_give_equal_weights(rule):
    """A permutation of the classes changes the distribution and not its entropy, but for the order of a sum."""
    student, _ = two_answers(count=200)
    teacher = student.float()[:, torch.tensor([3, 0, 4, 1, 2])]
    ones = torch.ones(200)

    assert all(torch.equal(ones, it) for it in bd_kd_weights(student.float(), teacher, 2.0, rule))


@pytest.mark.parametrize("rule", ["share", "step"])
def test_two_certain_networks_have_equal_weights(rule):
    certain = torch.tensor([[1e4, 0.0, 0.0]])

    assert [it.item() for it in bd_kd_weights(certain, certain.flip(1), 1.0, rule)] == [1.0, 1.0]


def test_row_208_the_weights_follow_the_entropies_of_each_image():
    student, teacher = two_answers()
    h_s, h_t = (probabilities(it, 2.0).entropy() for it in (student, teacher))
    forward, reverse = bd_kd_weights(student, teacher, 2.0, "share")

    assert torch.allclose(2 * h_t / (h_t + h_s), forward)
    assert torch.allclose(2 * h_s / (h_t + h_s), reverse)
    assert torch.equal(torch.where(h_t > h_s, 2.0, 0.0), bd_kd_weights(student, teacher, 2.0, "step")[0].float())
    assert 0 < (h_t > h_s).sum() < len(h_t)
    assert not (forward.requires_grad or reverse.requires_grad)


@pytest.mark.parametrize("rule", RULES)
def test_row_208_the_loss_is_the_weighted_sum(rule):
    student, teacher = two_answers()
    p_s, p_t = (probabilities(it, 3.0) for it in (student, teacher))
    forward, reverse = bd_kd_weights(student, teacher, 3.0, rule)
    each = 0.7 * forward * kl_divergence(p_t, p_s) + 0.4 * reverse * kl_divergence(p_s, p_t)
    found = bd_kd_loss(student, teacher, 0.7, 0.4, 3.0, rule)
    swapped = bd_kd_loss(student, teacher, 0.4, 0.7, 3.0, rule)

    assert torch.allclose(9 * each.mean(), found, rtol=1e-12)
    assert abs(swapped - found) > 1e-3 * found


def test_row_208_forward_alone_is_ordinary_distillation():
    student, teacher = two_answers()
    found = bd_kd_loss(student, teacher, alpha=0.6, beta=0.0, temperature=3.0, entropy_rule="none")
    (ours,) = torch.autograd.grad(found, student)
    ordinary = 0.6 * kd_loss(student, teacher.detach(), 3.0)
    (theirs,) = torch.autograd.grad(ordinary, student)

    assert torch.allclose(ordinary, found, rtol=1e-12)
    assert torch.allclose(theirs, ours, rtol=1e-10)


@pytest.mark.parametrize("rule", RULES)
def test_row_208_neither_loss_has_a_gradient_for_the_other_network(rule):
    student, teacher = two_answers()
    labels = torch.arange(8) % 5
    of_student = bd_kd_loss(student, teacher, entropy_rule=rule)
    of_teacher = bd_kd_teacher_loss(teacher, student, labels, 0.5)
    own, other = torch.autograd.grad(of_student, (student, teacher), allow_unused=True)

    assert other is None
    assert own.abs().max() > 1e-3
    other, own = torch.autograd.grad(of_teacher, (student, teacher), allow_unused=True)

    assert other is None
    assert own.abs().max() > 1e-3


def test_row_208_the_teacher_learns_by_its_labels_and_the_reverse_divergence():
    student, teacher = two_answers()
    labels = torch.arange(8) % 5
    p_s, p_t = (probabilities(it, 4.0) for it in (student, teacher))
    found = bd_kd_teacher_loss(teacher, student, labels, 0.3, 4.0)

    assert torch.allclose(F.cross_entropy(teacher, labels) + 0.3 * 16 * kl_divergence(p_s, p_t).mean(), found)
    assert torch.equal(F.cross_entropy(teacher, labels), bd_kd_teacher_loss(teacher, student, labels, 0.0))


def test_half_precision_is_computed_in_full():
    student, teacher = (it.detach().half() for it in two_answers())

    assert torch.float32 == bd_kd_loss(student, teacher).dtype
    assert torch.equal(bd_kd_loss(student.float(), teacher.float()), bd_kd_loss(student, teacher))


def loader():
    return ResumableLoader(labelled_images(60), 6)


def teacher():
    """Without dropout, so that a loop by hand need not draw as the seam does."""
    torch.manual_seed(10)
    return small_network(dropout=0.0)


def trained(*callbacks, kind=Plain, **options):
    torch.manual_seed(0)
    module = kind()
    torch.manual_seed(1)
    trainer = quiet_trainer(callbacks=list(callbacks), **{"max_epochs": 2} | options)
    trainer.fit(module, loader())
    return module


def by_hand(settings, mutant=""):
    """Two epochs of SGD on two networks by hand; their final states."""
    alpha, beta, temperature, teacher_kd_weight = settings
    torch.manual_seed(0)
    module = Plain()
    online = teacher()
    torch.manual_seed(1)
    online.train(mutant != "a teacher in evaluation mode")
    steps = [torch.optim.SGD(it.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3) for it in (module, online)]
    schedules = [torch.optim.lr_scheduler.StepLR(it, 5, gamma=0.8) for it in steps]
    data = loader()
    for epoch in range(2):
        data.sampler.set_epoch(epoch)
        for image, target in data:
            z_s, z_t = module(image), online(image)
            other = z_t if mutant == "no stop of gradients" else z_t.detach()
            p_s = Categorical(logits=z_s / temperature)
            p_t = Categorical(logits=other / temperature)
            h_s, h_t = p_s.entropy().detach(), p_t.entropy().detach()
            w, v = 2 * h_t / (h_s + h_t), 2 * h_s / (h_s + h_t)
            if mutant == "weights of the other network":
                w, v = v, w
            if mutant == "weights of the batch":
                w, v = w.mean(), v.mean()
            pull = temperature**2 * (alpha * w * kl_divergence(p_t, p_s) + beta * v * kl_divergence(p_s, p_t)).mean()
            back = kl_divergence(
                Categorical(logits=z_s.detach() / temperature), Categorical(logits=z_t / temperature)
            ).mean()
            own = F.cross_entropy(z_s, target) + F.cross_entropy(z_t, target)
            for step in steps:
                step.zero_grad()
            (own + pull + teacher_kd_weight * temperature**2 * back).backward()
            for step, schedule in zip(steps, schedules, strict=True):
                step.step()
                schedule.step()
    return module.state_dict(), online.state_dict()


SETTINGS = (0.8, 0.5, 3.0, 0.2)


def test_training_of_both_networks_equals_a_loop_by_hand():
    keys = ("alpha", "beta", "temperature", "teacher_kd_weight")
    callback = BDKD(teacher=teacher(), **dict(zip(keys, SETTINGS, strict=True)))
    module = trained(callback)
    student, online = by_hand(SETTINGS)

    assert distance(student, module.state_dict()) < 5e-6
    assert distance(online, callback.state_dict()["parts"]["teacher"]) < 5e-6
    assert distance(teacher().state_dict(), online) > 1e-2


MUTANTS = [
    "no stop of gradients",
    "weights of the other network",
    "weights of the batch",
    "a teacher in evaluation mode",
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_loop_is_noticed(mutant):
    right, wrong = by_hand(SETTINGS), by_hand(SETTINGS, mutant)

    assert max(map(distance, right, wrong)) > 1e-4


BAD = [
    ({"alpha": -1.0}, "BDKD: alpha is -1.0; give a finite number of at least 0."),
    ({"beta": float("nan")}, "BDKD: beta is nan; give a finite number of at least 0."),
    ({"temperature": 0}, "BDKD: temperature is 0; give a number above 0."),
    ({"teacher_kd_weight": -0.1}, "BDKD: teacher_kd_weight is -0.1; give a finite number of at least 0."),
    ({"entropy_rule": "hard"}, "BDKD: entropy_rule is 'hard'; give 'share', 'step' or 'none'."),
    ({"ece_bins": 1.5}, "BDKD: ece_bins is 1.5; give a whole number of at least 0."),
    ({"seed": -1}, "BDKD: seed is -1; give a whole number of at least 0."),
    ({"teacher": ["a.ckpt", "b.ckpt"]}, "BDKD: teacher is a list, and one teacher trains along; give one."),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as refusal:
        BDKD(**{"teacher": "teacher.ckpt"} | settings)

    assert str(refusal.value) == sentence
