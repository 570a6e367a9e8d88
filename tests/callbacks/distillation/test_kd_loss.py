"""The one divergence with a temperature, against its definition, its limits and torch's own."""

import pytest
import torch
import torch.nn.functional as F

from lightning_vision.callbacks import kd_loss, mean_logits


def logits(count=2, dtype=torch.float64):
    return torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_it_is_what_the_definition_says(temperature):
    student, teacher = logits()
    p, q = ((it / temperature).softmax(dim=1) for it in (teacher, student))
    by_hand = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()

    assert torch.allclose(kd_loss(student, teacher, temperature), by_hand, rtol=1e-12)


def test_its_gradient_is_that_of_the_cross_entropy_with_soft_targets():
    """T^2 H(p, q) and T^2 KL(p || q) differ by what the student has no part in; Hinton's section 2 has the first."""
    student, teacher = logits()
    student.requires_grad_()
    (found,) = torch.autograd.grad(kd_loss(student, teacher, 3.0), student)
    (expected,) = torch.autograd.grad(9 * F.cross_entropy(student / 3, (teacher / 3).softmax(dim=1)), student)

    assert torch.allclose(found, expected, rtol=1e-12)


def test_at_high_temperatures_it_compares_logits():
    """Their section 2.1: with logits of mean 0 it tends to |z_S - z_T|^2 / (2 K), and so does its gradient."""
    student, teacher = (it - it.mean(dim=1, keepdim=True) for it in logits())

    assert torch.allclose(
        kd_loss(student, teacher, 1e4), (student - teacher).square().sum(dim=1).mean() / 10, rtol=1e-3
    )


def test_equal_answers_have_neither_loss_nor_gradient():
    student, _ = logits()
    student.requires_grad_()
    loss = kd_loss(student, student.detach().clone(), 4.0)
    loss.backward()

    assert loss.item() == 0.0
    assert student.grad.abs().max().item() < 1e-16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = logits(dtype=torch.float32).to(dtype)

    assert kd_loss(student, teacher).dtype == torch.float32
    assert torch.equal(kd_loss(student, teacher), kd_loss(student.float(), teacher.float()))


def test_several_answers_are_averaged_as_softened_probabilities():
    answers = logits(3)
    mean = torch.stack([(it / 2).softmax(dim=1) for it in answers]).mean(dim=0)

    assert torch.allclose((mean_logits(list(answers), 2.0) / 2).softmax(dim=1), mean, rtol=1e-12)
    assert torch.equal(mean_logits([answers[0]], 2.0), answers[0])
    assert not torch.allclose((answers.mean(dim=0) / 2).softmax(dim=1), mean, rtol=1e-3)
