"""BD-KD: both divergences against `torch.distributions`, training against a loop written by hand.

Conformance (resume under all conditions, neutral run, undo, pairs) is proved in `conformance/`, the teacher that trains
along in `hooks/test_online.py`.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from lightning_vision.callbacks.distillation.bd_kd import bd_kd_loss, bd_kd_teacher_loss, bd_kd_weights
from lightning_vision.callbacks.distillation.kd_loss import kd_loss

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
