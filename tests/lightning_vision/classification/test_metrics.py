"""Metrics against torchmetrics, scikit-learn and counts by hand."""

import pytest
import torch
from sklearn.metrics import f1_score, precision_recall_fscore_support
from torchmetrics.classification import MulticlassAccuracy

from lightning_vision.classification.label_metrics import LabelMetrics
from lightning_vision.classification.metrics import EpochMetrics, accuracies, accuracy, label_accuracy


@pytest.fixture
def batches():
    return [(torch.randn(n, 7), torch.randint(7, (n,))) for n in (16, 16, 5)]


@pytest.mark.parametrize(("name", "k"), [("acc", 1), ("acc_top5", 5)])
def test_accuracies_equal_torchmetrics(name, k, batches):
    theirs = MulticlassAccuracy(7, top_k=k, average="micro")
    ours = []
    for logits, target in batches:
        theirs.update(logits, target)
        ours.append(accuracies(logits, target)[name] * len(target))

    torch.testing.assert_close(torch.stack(ours).sum() / 37, theirs.compute())


def test_top_five_of_five_classes_would_be_one_and_is_left_out():
    assert accuracies(torch.eye(5), torch.arange(5)).keys() == {"acc"}
    assert accuracies(torch.eye(6), torch.arange(6)).keys() == {"acc", "acc_top5"}


def test_accuracy_by_hand():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 2.0], [2.0, 3.0]])

    assert float(accuracy(logits, torch.tensor([0, 1, 1, 1]))) == 0.75


def test_label_accuracy_by_hand():
    logits = torch.tensor([[1.0, -1.0, 2.0], [-3.0, 1.0, 1.0]])
    target = torch.tensor([[1, 0, 0], [0, 1, 1]])

    assert float(label_accuracy(logits, target)) == pytest.approx(5 / 6)


def filled(batches):
    metrics = EpochMetrics(7)
    for logits, target in batches:
        metrics.update(logits.softmax(1), target)
    return metrics


def test_macro_f1_equals_scikit_learn(batches):
    predicted = torch.cat([logits.argmax(1) for logits, _ in batches])
    target = torch.cat([target for _, target in batches])

    assert float(filled(batches).compute()["f1"]) == pytest.approx(f1_score(target, predicted, average="macro"))


def test_calibration_error_by_hand():
    """Four images with confidence 0.8 of which three are right, one with 0.6 that is wrong: (4 * 0.05 + 0.6) / 5."""
    metrics = EpochMetrics(2)
    metrics.update(torch.tensor([[0.8, 0.2]] * 4 + [[0.6, 0.4]]), torch.tensor([0, 0, 0, 1, 1]))

    assert float(metrics.compute()["ece"]) == pytest.approx((4 * 0.05 + 0.6) / 5)


def test_the_table_of_classes_equals_scikit_learn(batches):
    names = list("abcdefg")
    predicted = torch.cat([logits.argmax(1) for logits, _ in batches])
    target = torch.cat([target for _, target in batches])
    expected = precision_recall_fscore_support(target, predicted, labels=range(7), zero_division=0)
    table = filled(batches).per_class(names)

    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in table] == pytest.approx(list(column))
    assert [row["class"] for row in table] == names


def test_several_labels_an_image_are_counted_label_by_label():
    """Decisions above a half: [1, 0, 1], [0, 1, 1]. F1 is 1, 1 and 2/3; the calibration error is over six decisions."""
    metrics = LabelMetrics(3)
    metrics.update(torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.7, 0.8]]), torch.tensor([[1, 0, 0], [0, 1, 1]]))
    values = metrics.compute()

    assert float(values["f1"]) == pytest.approx((1 + 1 + 2 / 3) / 3)
    # Bins of 1/15: 0.9 | 0.1 | 0.8 twice, one right | 0.2 | 0.7.
    assert float(values["ece"]) == pytest.approx((0.1 + 0.1 + 2 * 0.3 + 0.2 + 0.3) / 6, abs=1e-6)
    assert [row["support"] for row in metrics.per_class(["a", "b", "c"])] == [1, 1, 1]


def test_nothing_is_left_after_a_reset(batches):
    metrics = filled(batches)
    before = metrics.compute()["f1"]
    metrics.reset()
    for logits, target in batches:
        metrics.update(logits.softmax(1), target)

    assert torch.equal(metrics.compute()["f1"], before)


def test_metrics_add_nothing_to_a_checkpoint(batches):
    assert filled(batches).state_dict() == {}


def test_ranks_are_counted_together(two_ranks, batches):
    def half():
        rank = torch.distributed.get_rank()
        return {name: float(value) for name, value in filled(batches[rank::2]).compute().items()}

    first, second = two_ranks(half)

    assert first == second == pytest.approx({name: float(v) for name, v in filled(batches).compute().items()})
