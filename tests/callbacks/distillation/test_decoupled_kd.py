"""Decoupled distillation: its identity with ordinary distillation, its definition, labels that are probabilities."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks.distillation.decoupled_kd import decoupled_kd_loss
from lightning_vision.callbacks.distillation.kd_loss import kd_loss


def draws(count=12, classes=7):
    random = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, count, classes, generator=random, dtype=torch.float64)
    return student, teacher, torch.randint(classes, (count,), generator=random)


def definition(student, teacher, target, alpha, beta, temperature):
    """Image by image, probabilities by probabilities, as Eq. 7 is written."""
    found = []
    for ours, theirs, label in zip(student, teacher, target, strict=True):
        p, q = (theirs / temperature).softmax(0), (ours / temperature).softmax(0)
        others = [it for it in range(len(p)) if it != label]
        of_label = p[label] * (p[label] / q[label]).log() + (1 - p[label]) * ((1 - p[label]) / (1 - q[label])).log()
        p_others, q_others = p[others] / p[others].sum(), q[others] / q[others].sum()
        found.append(alpha * of_label + beta * (p_others * (p_others / q_others).log()).sum())
    return temperature**2 * sum(found) / len(found)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_with_the_teachers_own_doubt_as_beta_it_is_ordinary_distillation(temperature):
    student, teacher, target = draws()
    sure = (teacher / temperature).softmax(1).gather(1, target[:, None]).squeeze(1)
    ordinary = kd_loss(student, teacher, temperature)

    assert torch.allclose(decoupled_kd_loss(student, teacher, target, 1.0, 1 - sure, temperature), ordinary, rtol=1e-12)
    assert abs(decoupled_kd_loss(student, teacher, target, 1.0, sure, temperature) - ordinary) > 0.01


def test_so_do_their_gradients():
    student, teacher, target = draws()
    sure = (teacher / 4).softmax(1).gather(1, target[:, None]).squeeze(1)
    student.requires_grad_()
    (ours,) = torch.autograd.grad(decoupled_kd_loss(student, teacher, target, 1.0, 1 - sure, 4.0), student)
    (theirs,) = torch.autograd.grad(kd_loss(student, teacher, 4.0), student)

    assert torch.allclose(theirs, ours, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.0, 1.0), (2.0, 0.0), (0.5, 0.5)])
def test_it_equals_its_definition(alpha, beta):
    given = draws()

    assert torch.allclose(definition(*given, alpha, beta, 4.0), decoupled_kd_loss(*given, alpha, beta), rtol=1e-10)


def test_only_the_labels_part_sees_the_labels_logit():
    student, teacher, target = draws()
    moved = student + 5 * F.one_hot(target, 7)

    assert torch.allclose(
        decoupled_kd_loss(student, teacher, target, 0.0, 1.0), decoupled_kd_loss(moved, teacher, target, 0.0, 1.0)
    )
    assert abs(decoupled_kd_loss(student, teacher, target) - decoupled_kd_loss(moved, teacher, target)) > 0.1


def test_probabilities_as_labels_have_their_likeliest_class_as_the_label():
    student, teacher, target = draws()
    mixed = 0.6 * F.one_hot(target, 7) + 0.4 * F.one_hot((target + 1) % 7, 7)

    assert torch.equal(decoupled_kd_loss(student, teacher, target), decoupled_kd_loss(student, teacher, mixed))


def test_a_teacher_that_is_sure_gives_finite_gradients_in_bfloat16():
    student = torch.tensor([[80.0, -80.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    teacher = torch.tensor([[-90.0, 90.0, 0.0]], dtype=torch.bfloat16)
    decoupled_kd_loss(student, teacher, torch.tensor([1])).backward()

    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def test_one_class_has_no_others():
    with pytest.raises(ValueError) as refusal:
        decoupled_kd_loss(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))

    assert str(refusal.value) == (
        "decoupled_kd_loss: the logits have the shape (3, 1), so there is no class beside the label; give logits "
        "(B, K) of at least two classes."
    )
