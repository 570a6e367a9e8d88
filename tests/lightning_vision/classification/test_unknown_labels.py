"""Labels that nobody knows: no gradient from them, no place in any metric, and a run that trains on the others."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from lightning_vision.callbacks.evaluation._tally import ClassTally
from lightning_vision.classification import ImageClassifier
from lightning_vision.classification.label_metrics import LabelMetrics
from lightning_vision.classification.losses import BinaryCrossEntropy, binary_cross_entropy
from lightning_vision.classification.metrics import label_accuracy
from lightning_vision.classification.targets import known_labels
from lightning_vision.classification.thresholds import best_thresholds
from lightning_vision.datamodules import Digits
from lightning_vision.datamodules.common._labels import check_labels
from lightning_vision.datamodules.common._sets import ArrayImages
from support.trainers import quiet_trainer

NAN = float("nan")


def drawn(rows: int = 24, labels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets of 0 and 1, and which of them are known: two in three, none of the first image."""
    rng = torch.Generator().manual_seed(0)
    logits, target = torch.randn(rows, labels, generator=rng), torch.rand(rows, labels, generator=rng).round()
    known = torch.rand(rows, labels, generator=rng) < 0.67
    known[0] = False
    return logits, target, known


def hidden(target: Tensor, known: Tensor) -> Tensor:
    return target.masked_fill(~known, NAN)


def test_row_313_unknown_labels_get_zero_gradient_and_known_ones_that_of_their_own_mean() -> None:
    logits, target, known = drawn()
    logits.requires_grad_()
    binary_cross_entropy(logits, hidden(target, known)).backward()
    ours, logits.grad = logits.grad, None
    F.binary_cross_entropy_with_logits(logits[known], target[known]).backward()

    assert ours is not None and logits.grad is not None
    assert torch.count_nonzero(ours[~known]) == 0
    assert torch.count_nonzero(ours[known]) == known.sum()
    assert torch.allclose(logits.grad, ours, atol=1e-8)


@pytest.mark.parametrize("answer", [0.0, 1.0])
def test_row_313_a_loss_that_takes_unknown_for_an_answer_is_noticed(answer: float) -> None:
    logits, target, known = drawn()
    logits.requires_grad_()
    F.binary_cross_entropy_with_logits(logits, hidden(target, known).nan_to_num(answer)).backward()

    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[~known]) > 0


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_where_all_is_known_the_loss_is_torchs_bit_for_bit(kind: torch.dtype) -> None:
    logits, target, _ = (it.to(kind) for it in drawn(49, 7))
    logits.requires_grad_()
    weight, twice = torch.rand(7, dtype=kind), torch.rand(7, dtype=kind)
    for classes, yes in ((None, None), (weight, twice)):
        expected = F.binary_cross_entropy_with_logits(logits, target, classes, pos_weight=yes)
        for labels in (target, target.long()):
            found = binary_cross_entropy(logits, labels, classes, yes)

            assert expected.dtype == found.dtype
            assert torch.equal(expected, found)
            assert torch.equal(*(torch.autograd.grad(it, logits, retain_graph=True)[0] for it in (expected, found)))


def test_class_weights_count_known_labels_alone() -> None:
    logits, target, known = drawn()
    criterion = BinaryCrossEntropy([1.0, 2.0, 3.0, 4.0])
    each = F.binary_cross_entropy_with_logits(logits, target, torch.arange(1.0, 5), reduction="none")

    assert float(criterion(logits, hidden(target, known))) == pytest.approx(float(each[known].mean()))


def test_a_batch_of_which_nothing_is_known_has_loss_0_and_no_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = binary_cross_entropy(logits, torch.full((2, 3), NAN))
    loss.backward()

    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert torch.equal(torch.zeros(2, 3), logits.grad)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_the_share_of_known_labels_is_not_rounded_to_the_precision_of_logits(kind: torch.dtype) -> None:
    logits = torch.zeros(100, 50, dtype=kind)
    target = torch.zeros(100, 50)
    target[:, 17:] = NAN

    assert float(binary_cross_entropy(logits, target)) == pytest.approx(0.6931, rel=1e-2)


def test_metrics_are_scikit_learns_of_each_label_over_the_images_where_it_is_known() -> None:
    logits, target, known = drawn(60)
    scores, metrics = logits.sigmoid(), LabelMetrics(4)
    labels = known_labels(hidden(target, known), 4, multilabel=True)
    for rows in (slice(0, 25), slice(25, 60)):
        metrics.update(scores[rows], labels[rows])
    found, table = metrics.compute(), metrics.per_class(list("abcd"))
    parts = [(target[known[:, k], k], scores[known[:, k], k]) for k in range(4)]
    precision = [average_precision_score(*part) for part in parts]

    assert [row["average_precision"] for row in table] == pytest.approx(precision)
    assert [row["support"] for row in table] == [int(part[0].sum()) for part in parts]
    assert float(found["map"]) == pytest.approx(sum(precision) / 4)
    assert float(found["f1"]) == pytest.approx(sum(f1_score(true, said > 0.5) for true, said in parts) / 4)


def test_thresholds_are_of_the_largest_f1_among_known_labels() -> None:
    logits, target, known = drawn(60)
    scores, labels = logits.sigmoid(), known_labels(hidden(target, known), 4, multilabel=True)
    for k, threshold in enumerate(best_thresholds(scores, labels)):
        true, said = target[known[:, k], k], scores[known[:, k], k]
        others = [f1_score(true, said > other) for other in [0.0, *said.tolist()]]

        assert f1_score(true, said > threshold) == pytest.approx(max(others))


def test_accuracy_is_the_share_of_right_decisions_among_known_labels() -> None:
    logits, target, known = drawn()
    right = (logits > 0) == (target > 0.5)

    labels = known_labels(hidden(target, known), 4, multilabel=True)
    assert float(label_accuracy(logits, labels)) == pytest.approx(float(right[known].float().mean()))
    assert float(label_accuracy(logits, torch.full((24, 4), -1))) == 0


def test_labels_are_checked_around_unknown_ones() -> None:
    check_labels(torch.tensor([[NAN, 1.0], [0.0, NAN]]), 2)

    with pytest.raises(ValueError, match=r"label 2\.0 of sample 1 is outside 0\.\.1"):
        check_labels(torch.tensor([[NAN, 1.0], [2.0, NAN]]), 2)


class HalfKnown(Digits):
    """Digits that are even, have a loop or are a seven, each told of every other image."""

    @property
    def class_names(self) -> list[str]:
        return ["even", "has a loop", "is seven"]

    def load(self) -> None:
        super().load()
        digit = torch.arange(10)
        table = torch.stack([digit % 2 == 0, (digit % 6 == 0) | (digit > 7), digit == 7], 1).float()
        for name in ("train_set", "val_set"):
            images: Any = getattr(self, name)
            target = table[images.targets]
            target[torch.arange(len(target))[:, None] % 2 != torch.arange(3) % 2] = NAN
            setattr(self, name, ArrayImages(images.images, target))


def test_a_classifier_learns_from_the_known_half() -> None:
    torch.manual_seed(0)
    module = ImageClassifier(
        "resnet8_cifar", 3, 1, loss="bce", optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    )
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, HalfKnown(batch_size=64))

    assert float(trainer.callback_metrics["val/map"]) > 0.75
    assert float(trainer.callback_metrics["val/acc"]) > 0.75
    assert float(trainer.callback_metrics["train/loss_epoch"]) < 0.6


def test_a_table_of_mistakes_refuses_labels_that_nobody_knows() -> None:
    with pytest.raises(ValueError, match="some labels of this batch are unknown, NaN"):
        ClassTally(0, None, None).add(None, torch.zeros(1, 2), torch.tensor([[NAN, 1.0]]))
