"""Metrics of classification with one label an image: accuracies as plain scalars, the rest as torchmetrics.

Letters: B batch, K classes. Accuracies are means over images, so they are summed with the loss in one place, in a tenth
of the time that torchmetrics takes for 1,000 classes. Macro F1, calibration and per-class counts are no such means.
"""

from typing import Any

from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassCalibrationError,
    MulticlassF1Score,
    MulticlassStatScores,
)

__all__ = ["EpochMetrics", "accuracies", "accuracy", "class_row", "label_accuracy"]

BINS = 15


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of images whose largest logit is the target's, a float32 scalar.

    Args:
        logits: `(B, K)`.
        target: Classes, int64 `(B,)`.
    """
    return (logits.argmax(1) == target).float().mean()


def accuracies(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Top-1 accuracy of a batch and, with more than five classes, top-5 accuracy.

    Args:
        logits: `(B, K)`.
        target: Classes, int64 `(B,)`.

    Returns:
        `acc` and `acc_top5`, the share of images whose target is among the five largest logits, float32 scalars.
    """
    if logits.shape[1] <= 5:
        return {"acc": accuracy(logits, target)}
    hits = (logits.topk(5, 1).indices == target[:, None]).float()
    return {"acc": hits[:, 0].mean(), "acc_top5": hits.sum(1).mean()}


def label_accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right decisions over all known labels of all images, a float32 scalar; 0 where none is known.

    Args:
        logits: `(B, K)`; positive means yes.
        target: Probability of each label `(B, K)`; above a half means yes, below 0 that it is unknown.
    """
    known = target >= 0
    right = ((logits > 0) == (target > 0.5)) & known
    return right.sum() / known.sum().clamp(min=1)


def class_row(name: str, counts: list[int]) -> dict[str, Any]:
    """Precision, recall and F1 of one class from its counts, as a row of a table; what is undefined is 0.

    Args:
        name: Of the class.
        counts: Hits, false alarms, right refusals, misses and images of the class.

    Returns:
        `{"class", "support", "precision", "recall", "f1"}`.
    """
    hits, false_alarms, _, misses, support = counts
    return {
        "class": name,
        "support": support,
        "precision": hits / max(hits + false_alarms, 1),
        "recall": hits / max(hits + misses, 1),
        "f1": 2 * hits / max(2 * hits + false_alarms + misses, 1),
    }


class EpochMetrics(nn.Module):
    """Macro F1, expected calibration error and counts of each class, over an epoch.

    On several ranks `compute` and `per_class` sum over the ranks, so all ranks must call them.

    Args:
        num_classes: K.

    Attributes:
        thresholds: None, for the most probable class is the one.

    Reference: Guo et al. 2017, arXiv:1706.04599
    """

    thresholds: list[float] | None = None

    def __init__(self, num_classes: int) -> None:
        super().__init__()
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
            target: Classes, int64 `(B,)`.
        """
        self.counts.update(probabilities, target)
        self.ece.update(probabilities, target)

    def compute(self) -> dict[str, Tensor]:
        """`f1` and `ece`, each in 0..1."""
        return {"f1": self.counts.compute()["f1"], "ece": self.ece.compute()}

    def per_class(self, class_names: list[str]) -> list[dict[str, Any]]:
        """For each class `{"class", "support", "precision", "recall", "f1"}`; what is undefined is 0."""
        counts = self.counts.compute()["classes"].tolist()
        return [class_row(name, row) for name, row in zip(class_names, counts, strict=True)]

    def reset(self) -> None:
        """Forget everything counted so far."""
        self.counts.reset()
        self.ece.reset()
