"""Each loss against its formula, written out with plain exponentials and logarithms."""

from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import sigmoid_focal_loss

from lightning_vision.classification.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    Focal,
    binary_cross_entropy,
    focal,
    make_loss,
)

LOGITS = [[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]]
TARGET = [0, 1]
WEIGHTS = [1.0, 2.0, 4.0]


def probabilities(row):
    return [exp(z) / sum(map(exp, row)) for z in row]


def sigmoid(z):
    return 1 / (1 + exp(-z))


@pytest.fixture
def batch():
    return torch.tensor(LOGITS), torch.tensor(TARGET)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_smooths_the_target_over_all_classes(smoothing, batch):
    total = 0.0
    for row, label in zip(LOGITS, TARGET, strict=True):
        for k, p in enumerate(probabilities(row)):
            total -= ((1 - smoothing) * (k == label) + smoothing / 3) * log(p)

    assert float(CrossEntropy(smoothing)(*batch)) == pytest.approx(total / 2)


def test_cross_entropy_with_class_weights_is_a_mean_over_the_weights(batch):
    first, second = (-log(probabilities(row)[label]) for row, label in zip(LOGITS, TARGET, strict=True))

    assert float(CrossEntropy(class_weights=WEIGHTS)(*batch)) == pytest.approx((1 * first + 2 * second) / 3)


@pytest.mark.parametrize("loss", [CrossEntropy(0.1), Focal(2.0), Focal(1.5, WEIGHTS)], ids=["ce", "focal", "weighted"])
def test_one_hot_probabilities_equal_labels(loss, batch):
    logits, target = batch

    torch.testing.assert_close(loss(logits, F.one_hot(target, 3).float()), loss(logits, target))


def test_cross_entropy_calls_torch_with_the_very_labels_of_the_batch(batch):
    logits, target = batch
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.cross_entropy:
                seen.append(args[1])
            return func(*args, **(kwargs or {}))

    with Watch():
        CrossEntropy(0.1, WEIGHTS)(logits, target)

    assert [label is target for label in seen] == [True]


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_focal_loss_discounts_what_is_classified_well(gamma, weights, batch):
    total = 0.0
    for row, label in zip(LOGITS, TARGET, strict=True):
        p = probabilities(row)[label]
        total -= (weights or [1.0] * 3)[label] * (1 - p) ** gamma * log(p)

    assert float(Focal(gamma, weights)(*batch)) == pytest.approx(total / 2)


def test_focal_loss_of_two_classes_equals_torchvision():
    """Softmax over (z, 0) is sigmoid(z)."""
    z = torch.randn(7, dtype=torch.float64)
    target = torch.randint(2, (7,))
    theirs = sigmoid_focal_loss(z, target.double(), alpha=-1, gamma=2.0, reduction="mean")

    torch.testing.assert_close(focal(torch.stack([torch.zeros_like(z), z], 1), target), theirs)


def test_focal_loss_has_a_finite_gradient_at_certainty():
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([0])).backward()

    assert bool(logits.grad.isfinite().all())


def test_binary_cross_entropy_judges_each_label_on_its_own(batch):
    logits, _ = batch
    labels = [[1.0, 0.0, 1.0], [0.0, 0.25, 1.0]]
    total = 0.0
    for row, targets in zip(LOGITS, labels, strict=True):
        for z, t, w in zip(row, targets, WEIGHTS, strict=True):
            total -= w * (t * log(sigmoid(z)) + (1 - t) * log(1 - sigmoid(z)))

    assert float(BinaryCrossEntropy(WEIGHTS)(logits, torch.tensor(labels))) == pytest.approx(total / 6)


def test_binary_cross_entropy_takes_a_label_for_one_positive(batch):
    logits, target = batch

    assert torch.equal(binary_cross_entropy(logits, target), binary_cross_entropy(logits, F.one_hot(target, 3)))


@pytest.mark.parametrize("name", ["cross_entropy", "bce", "focal"])
def test_class_weights_move_with_the_module_and_stay_out_of_its_state(name):
    loss = make_loss(name, 3, class_weights=WEIGHTS)

    assert (loss.state_dict(), loss.double().weight.dtype) == ({}, torch.float64)


@pytest.mark.parametrize(
    ("name", "kind"), [("cross_entropy", CrossEntropy), ("bce", BinaryCrossEntropy), ("focal", Focal)]
)
def test_names_make_the_losses(name, kind):
    assert type(make_loss(name, 3)) is kind


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'; known are cross_entropy, bce and focal, or pass an nn.Module"),
        ({"loss": "bce", "label_smoothing": 0.1}, "label_smoothing=0.1 works with loss='cross_entropy', not with"),
        ({"loss": "focal", "label_smoothing": 0.1}, "label_smoothing=0.1 works with loss='cross_entropy', not with"),
        ({"loss": "cross_entropy", "label_smoothing": 1.5}, "label_smoothing must lie in 0..1, got 1.5"),
        ({"loss": "cross_entropy", "class_weights": [1.0]}, "class_weights has 1 numbers for 3 classes"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(num_classes=3, **settings)


def test_losses_train_without_lightning():
    network, loss = nn.Linear(2, 3), CrossEntropy(0.1)
    before = loss(network(torch.ones(4, 2)), torch.zeros(4, dtype=torch.int64))
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad

    assert float(loss(network(torch.ones(4, 2)), torch.zeros(4, dtype=torch.int64))) < float(before)
