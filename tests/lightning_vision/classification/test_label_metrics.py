"""Metrics of several labels an image against scikit-learn and by hand."""

import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from lightning_vision.classification.label_metrics import LabelMetrics
from lightning_vision.classification.thresholds import best_thresholds

THRESHOLDS = [0.2, 0.5, 0.7, 0.4, 0.5]


def batches():
    """37 images with five labels, of which nobody has the last."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.1, 0.3, 0.5, 0.8, 0.0])
    sizes = (16, 16, 5)
    return [
        (torch.rand(n, 5, generator=generator), (torch.rand(n, 5, generator=generator) < shares).long()) for n in sizes
    ]


def filled(parts):
    metrics = LabelMetrics(5)
    metrics.thresholds = THRESHOLDS
    for scores, target in parts:
        metrics.update(scores, target)
    return metrics


def whole():
    scores, target = (torch.cat(part) for part in zip(*batches(), strict=True))
    return scores, target


def test_mean_average_precision_is_scikit_learns_over_the_labels_that_there_are():
    scores, target = whole()
    expected = average_precision_score(target[:, :4], scores[:, :4], average="macro")

    assert float(filled(batches()).compute()["map"]) == pytest.approx(expected)


def test_the_table_equals_scikit_learn_at_the_thresholds():
    scores, target = whole()
    decided = scores > torch.tensor(THRESHOLDS)
    expected = precision_recall_fscore_support(target, decided, zero_division=0)
    table = filled(batches()).per_class(list("abcde"))

    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in table] == pytest.approx(list(column))
    assert [row["threshold"] for row in table] == THRESHOLDS
    assert [row["average_precision"] for row in table[:4]] == pytest.approx(
        average_precision_score(target[:, :4], scores[:, :4], average=None)
    )
    assert table[4]["average_precision"] == 0


def test_macro_f1_is_the_mean_of_the_table():
    metrics = filled(batches())

    assert float(metrics.compute()["f1"]) == pytest.approx(
        sum(row["f1"] for row in metrics.per_class(list("abcde"))) / 5
    )


def test_the_thresholds_are_those_of_all_batches():
    metrics = filled(batches())

    assert metrics.best_thresholds() == best_thresholds(*whole())


def test_a_score_at_its_threshold_is_not_above():
    metrics = LabelMetrics(1)
    metrics.update(torch.tensor([[0.5], [0.75]]), torch.tensor([[1], [1]]))

    assert metrics.per_class(["a"])[0]["recall"] == 0.5


def test_one_label_and_no_label_at_all_have_metrics():
    metrics = LabelMetrics(1)
    metrics.update(torch.tensor([[0.9], [0.2]]), torch.tensor([[0], [0]]))

    assert {name: float(value) for name, value in metrics.compute().items()} == {
        "map": 0,
        "f1": 0,
        "ece": pytest.approx((0.9 + 0.2) / 2),
    }


def test_nothing_is_left_after_a_reset():
    metrics = filled(batches())
    metrics.compute()
    metrics.reset()
    for scores, target in batches():
        metrics.update(scores, target)

    assert metrics.best_thresholds() == best_thresholds(*whole())


def test_metrics_add_nothing_to_a_checkpoint():
    assert filled(batches()).state_dict() == {}


def test_ranks_are_counted_together_and_choose_the_same_thresholds(two_ranks):
    def half():
        metrics = filled(batches()[torch.distributed.get_rank() :: 2])
        values = {name: float(value) for name, value in metrics.compute().items()}
        return metrics.best_thresholds(), values, metrics.per_class(list("abcde"))

    first, second = two_ranks(half)
    alone = filled(batches())

    assert first == second
    assert first[0] == alone.best_thresholds()
    assert first[1] == pytest.approx({name: float(value) for name, value in alone.compute().items()})
    assert [row["f1"] for row in first[2]] == [row["f1"] for row in alone.per_class(list("abcde"))]
