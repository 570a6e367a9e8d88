"""Metrics of classification: accuracies as plain scalars, the rest as torchmetrics.

Letters: B batch, K classes. Accuracies are means over images, so they are summed with the loss in one place, in a tenth
of the time that torchmetrics takes for 1,000 classes. Macro F1, calibration and per-class counts are no such means.
"""

from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassStatScores,
    MultilabelF1Score,
    MultilabelStatScores,
)

__all__ = ["EpochMetrics", "accuracies", "accuracy", "label_accuracy"]

BINS = 15


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of images whose largest logit is the target's, a float32 scalar.

    Args:
        logits: `(B, K)`.
        target: Classes, int64 `(B,)`.
    """
    return (logits.argmax(1) == target).float().mean()


def accuracies(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """`acc` and, with more than five classes, `acc_top5`: the target is among the five largest logits.

    Args:
        logits: `(B, K)`.
        target: Classes, int64 `(B,)`.
    """
    if logits.shape[1] <= 5:
        return {"acc": accuracy(logits, target)}
    hits = (logits.topk(5, 1).indices == target[:, None]).float()
    return {"acc": hits[:, 0].mean(), "acc_top5": hits.sum(1).mean()}


def label_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right decisions over all labels of all images, a float32 scalar.

    Args:
        logits: `(B, K)`; positive means yes.
        target: Probability of each label `(B, K)`; above a half means yes.
    """
    return ((logits > 0) == (target > 0.5)).float().mean()


class EpochMetrics(nn.Module):
    """Macro F1, expected calibration error and counts of each class, over an epoch.

    With several labels an image (`multilabel`), all label decisions enter the calibration error as binary ones. On
    several ranks `compute` and `per_class` sum over the ranks, so all ranks must call them.

    Args:
        num_classes: K.
        multilabel: Whether an image may have several labels.

    Reference: Guo et al. 2017, arXiv:1706.04599
    """

    def __init__(self, num_classes: int, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel
        if multilabel:
            self.counts = MetricCollection(
                {
                    "f1": MultilabelF1Score(num_classes, average="macro", validate_args=False),
                    "classes": MultilabelStatScores(num_classes, average="none", validate_args=False),
                }
            )
            self.ece: Any = BinaryCalibrationError(n_bins=BINS, validate_args=False)
        else:
            self.counts = MetricCollection(
                {
                    "f1": MulticlassF1Score(num_classes, average="macro", validate_args=False),
                    "classes": MulticlassStatScores(num_classes, average="none", validate_args=False),
                }
            )
            self.ece = MulticlassCalibrationError(num_classes, n_bins=BINS, validate_args=False)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            probabilities: `(B, K)` in 0..1.
            target: Classes, int64 `(B,)`, or labels, int64 `(B, K)` of 0 and 1.
        """
        self.counts.update(probabilities, target)
        if self.multilabel:
            self.ece.update(probabilities.flatten(), target.flatten())
        else:
            self.ece.update(probabilities, target)

    def compute(self) -> dict[str, Tensor]:
        """`f1` and `ece`, each in 0..1."""
        return {"f1": self.counts.compute()["f1"], "ece": self.ece.compute()}

    def per_class(self, class_names: list[str]) -> list[dict[str, Any]]:
        """For each class `{"class", "support", "precision", "recall", "f1"}`; what is undefined is 0."""
        table = []
        for name, row in zip(class_names, self.counts.compute()["classes"].tolist(), strict=True):
            hits, false_alarms, _, misses, support = row
            table.append(
                {
                    "class": name,
                    "support": support,
                    "precision": hits / max(hits + false_alarms, 1),
                    "recall": hits / max(hits + misses, 1),
                    "f1": 2 * hits / max(2 * hits + false_alarms + misses, 1),
                }
            )
        return table

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts.reset()
        self.ece.reset()
