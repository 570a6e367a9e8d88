"""Weighted means by hand, their precision, and their state."""

import pytest
import torch
from torchmetrics.aggregation import MeanMetric

from lightning_vision.base.sums import Sums


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


def test_a_mean_is_weighted_by_the_size_of_each_batch():
    sums = Sums()
    sums.add({"loss": scalar(1.0), "acc": scalar(0.5)}, weight=3)
    sums.add({"loss": scalar(5.0), "acc": scalar(0.0)}, weight=1)

    assert {name: float(mean) for name, mean in sums.means().items()} == {"loss": 2.0, "acc": 0.375}


def test_names_added_apart_have_weights_of_their_own():
    sums = Sums()
    sums.add({"loss": scalar(1.0)}, weight=1)
    sums.add({"loss": scalar(3.0)}, weight=1)
    sums.add({"rare": scalar(7.0)}, weight=10)

    assert {name: float(mean) for name, mean in sums.means().items()} == {"loss": 2.0, "rare": 7.0}


def test_small_values_are_not_lost_beside_a_large_sum():
    """2**24 + 1 + 1 = 16,777,218 needs more than float32's 24 bits on the way; a third of it is 5,592,406."""
    sums = Sums()
    for value in (2.0**24, 1.0, 1.0):
        sums.add({"x": scalar(value)}, weight=1)

    assert float(sums.means()["x"]) == 5_592_406.0


def test_means_equal_torchmetrics():
    values, weights = torch.rand(50), torch.randint(1, 65, (50,))
    sums, metric = Sums(), MeanMetric()
    for value, weight in zip(values, weights, strict=True):
        sums.add({"x": value}, int(weight))
        metric.update(value, weight)

    torch.testing.assert_close(sums.means()["x"], metric.compute(), rtol=1e-6, atol=0)


def test_a_graph_and_half_precision_are_accepted_and_nothing_keeps_the_graph():
    sums = Sums()
    leaf = torch.tensor(2.0, requires_grad=True)
    stacked = sums.add({"loss": leaf * 3, "half": torch.tensor(0.5, dtype=torch.bfloat16)}, weight=2)

    assert (stacked.requires_grad, sums.vector().requires_grad) == (False, False)
    assert {name: float(mean) for name, mean in sums.means().items()} == {"loss": 6.0, "half": 0.5}


def test_restored_sums_end_in_the_same_bits():
    values = torch.rand(9)
    straight, first = Sums(), Sums()
    for value in values:
        straight.add({"x": value}, weight=7)
    for value in values[:4]:
        first.add({"x": value}, weight=7)
    second = Sums()
    second.load(first.names(), first.vector())
    for value in values[4:]:
        second.add({"x": value}, weight=7)

    assert torch.equal(straight.vector(), second.vector())


def test_ranks_are_summed_before_the_division():
    """Rank 0 has the mean 1 of one image, rank 1 the mean 4 of two: 9 / 3, not 2.5."""
    ranks = []
    for value, weight in ((1.0, 1), (4.0, 2)):
        sums = Sums()
        sums.add({"x": scalar(value)}, weight)
        ranks.append(sums)

    assert float(ranks[0].means(lambda vector: vector + ranks[1].vector())["x"]) == 3.0


@pytest.mark.parametrize("empty", [Sums(), pytest.param(None, id="after reset")])
def test_empty_sums_have_no_means(empty):
    if empty is None:
        empty = Sums()
        empty.add({"x": scalar(1.0)}, weight=1)
        empty.reset()

    assert (bool(empty), empty.means()) == (False, {})
