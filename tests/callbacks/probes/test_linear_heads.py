"""Heads that are trained together equal heads that are trained alone; the convex one is scikit-learn's.

What a probe makes of them in a run is proved in `test_linear_probe.py`.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Generator, nn

from lightning_vision.callbacks.probes.linear_heads import (
    batches_of_an_epoch,
    few_a_class,
    head_logits,
    held_out,
    logistic_regression,
    standardised,
    train_heads,
)

RATES, DECAYS = [0.01, 0.1, 0.1, 0.5], [0.0, 0.0, 0.01, 0.1]


def clusters(count=90, size=7, classes=3, seed=0):
    """Features of overlapping classes."""
    random = Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, size, generator=random)
    return centres[labels] + torch.randn(count, size, generator=random), labels


def schedule(epochs=3, samples=90, batch_size=16):
    random = Generator().manual_seed(4)
    return [batch for _ in range(epochs) for batch in batches_of_an_epoch(samples, batch_size, random)]


def alone(features, labels, start, rate, decay, batches, momentum=0.9, cosine=True):
    """One head, by autograd and torch's SGD and cosine."""
    head = nn.Linear(*start.shape)
    with torch.no_grad():
        head.weight.copy_(start.T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=rate, momentum=momentum, weight_decay=decay)
    falls = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    for batch in batches:
        optimizer.zero_grad()
        F.cross_entropy(head(features[batch]), labels[batch]).backward()
        optimizer.step()
        if cosine:
            falls.step()
    return head.weight.detach().T, head.bias.detach()


@pytest.fixture(scope="module")
def grid():
    features, labels = clusters()
    start, batches = 0.01 * torch.randn(7, 3, generator=Generator().manual_seed(1)), schedule()
    return features, labels, start, batches, train_heads(features, labels, start, RATES, DECAYS, batches)


def test_each_head_of_a_grid_is_the_one_that_sgd_trains_alone(grid):
    features, labels, start, batches, (weight, bias) = grid
    for index, (rate, decay) in enumerate(zip(RATES, DECAYS, strict=True)):
        expected, offset = alone(features, labels, start, rate, decay, batches)
        torch.testing.assert_close(weight[index], expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(bias[index], offset, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"momentum": 0.0}, {"cosine": False}, {"decay": 0.0}], ids=lambda it: next(iter(it)))
def test_a_wrong_head_is_noticed(grid, wrong):
    features, labels, start, batches, (weight, _) = grid
    theirs, _ = alone(features, labels, start, **({"rate": 0.1, "decay": 0.01, "batches": batches} | wrong))
    assert not torch.allclose(weight[2], theirs, rtol=1e-3, atol=1e-3)


def test_heads_do_not_see_one_another(grid):
    features, labels, start, batches, (weight, bias) = grid
    one = train_heads(features, labels, start, RATES[3:], DECAYS[3:], batches)
    torch.testing.assert_close(one[0][0], weight[3], rtol=1e-5, atol=1e-6)
    logits = head_logits(features, weight, bias)
    assert logits.shape == (90, 4, 3)
    torch.testing.assert_close(logits[:, 2], features @ weight[2] + bias[2], rtol=1e-5, atol=1e-5)


def test_a_rate_of_zero_leaves_a_head_where_it_starts(grid):
    features, labels, start, batches, _ = grid
    weight, bias = train_heads(features, labels, start, [0.0], [0.3], batches)
    assert torch.equal(weight[0], start) and not bias.any()


def test_logistic_regression_is_scikit_learns():
    features, labels = clusters(60)
    weight, bias = logistic_regression(features, labels, 3, penalty=2.0)
    theirs = LogisticRegression(C=0.5, tol=1e-8, max_iter=1000).fit(features.double().numpy(), labels.numpy())
    ours = (features @ weight[0] + bias[0]).log_softmax(1)
    expected = torch.from_numpy(theirs.predict_log_proba(features.double().numpy())).float()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    # A penalty on the mean of the losses in place of their sum is another head.
    wrong, offset = logistic_regression(features, labels, 3, penalty=2.0 * len(features))
    assert not torch.allclose((features @ wrong[0] + offset[0]).log_softmax(1), expected, atol=0.05)


def test_features_are_standardised_by_those_that_are_given():
    features, _ = clusters(20)
    features[:, 3] = 5.0
    by = features[:8]
    found = standardised(features, by)
    own = standardised(by, by)
    alive = [0, 1, 2, 4, 5, 6]
    assert not found[:, 3].any()
    torch.testing.assert_close(own[:, alive].mean(0), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(own[:, alive].std(0, correction=0), torch.ones(6))
    torch.testing.assert_close(found[:8], own)
    assert math.isfinite(float(found.abs().max()))


def test_few_a_class_are_drawn_by_the_seed_alone():
    labels = torch.tensor([2] * 5 + [0] * 30 + [1] * 12)
    first, again, other = (few_a_class(labels, 6, Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert labels[first].bincount().tolist() == [6, 6, 5]
    assert torch.equal(first, first.unique())


def test_a_part_of_every_class_is_held_out():
    labels = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    kept, apart = held_out(labels, 0.1, Generator().manual_seed(0))
    assert labels[apart].bincount(minlength=4).tolist() == [4, 1, 1, 0]
    assert torch.equal(torch.cat([kept, apart]).sort().values, torch.arange(53))
