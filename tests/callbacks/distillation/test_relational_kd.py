"""Relational distillation: its definition pair by pair and triple by triple, and what does not change it."""

import pytest
import torch

from lightning_vision.callbacks.distillation.relational_kd import relational_angle_loss, relational_distance_loss

LOSSES = [relational_distance_loss, relational_angle_loss]


def draws(count=7):
    random = torch.Generator().manual_seed(0)
    student = torch.randn(count, 5, generator=random, dtype=torch.float64)
    return student, torch.randn(count, 3, generator=random, dtype=torch.float64) ** 3


def rotation():
    random = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(5, 5, generator=random, dtype=torch.float64)).Q


def huber(x, y):
    gap = abs(x - y)
    return gap**2 / 2 if gap <= 1 else gap - 0.5


def distances(embedding):
    count = len(embedding)
    every = [(embedding[i] - embedding[j]).norm() for i in range(count) for j in range(count) if i != j]
    return [it / (sum(every) / len(every)) for it in every]


def cosines(embedding):
    def toward(i, j):
        return (embedding[i] - embedding[j]) / (embedding[i] - embedding[j]).norm()

    count = len(embedding)
    triples = [(i, j, k) for i in range(count) for j in range(count) for k in range(count) if len({i, j, k}) == 3]
    return [toward(i, j) @ toward(k, j) for i, j, k in triples]


@pytest.mark.parametrize(("loss", "relations"), list(zip(LOSSES, [distances, cosines], strict=True)))
def test_it_equals_its_definition(loss, relations):
    student, teacher = draws()
    pairs = list(zip(relations(student), relations(teacher), strict=True))
    by_hand = sum(huber(*pair) for pair in pairs) / len(pairs)

    assert torch.allclose(by_hand, loss(student, teacher), rtol=1e-10)
    assert loss(student, teacher) > 0.05


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "change",
    [
        lambda it: 7 * it,
        lambda it: it @ rotation(),
        lambda it: it + 3,
        lambda it: -it,
        lambda it: -2 * it @ rotation() + 1,
    ],
    ids=["scale", "rotation", "shift", "reflection", "all"],
)
def test_neither_scale_nor_rotation_nor_shift_changes_it(loss, change):
    student, teacher = draws()

    assert torch.allclose(loss(student, teacher), loss(change(student), teacher), rtol=1e-10)
    assert loss(change(student), student) < 1e-20


@pytest.mark.parametrize("loss", LOSSES)
def test_a_stretch_along_one_axis_does(loss):
    student, _ = draws()

    assert loss(student * torch.tensor([3.0, 1, 1, 1, 1]), student) > 0.01


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_images_and_tiny_batches_have_finite_gradients(loss):
    for count in (1, 2, 4):
        same = torch.ones(count, 3, requires_grad=True)
        loss(same, torch.arange(3.0 * count).view(count, 3) ** 2).backward()

        assert same.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_widened_and_maps_are_flattened(loss):
    student, teacher = (it.float() for it in draws())
    maps = student[:, :4].reshape(7, 1, 2, 2)

    assert loss(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32
    assert torch.equal(loss(student[:, :4], teacher), loss(maps, teacher))
