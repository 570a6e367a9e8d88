"""Metrics where an image may have several labels: average precision, and F1 at each label's own threshold.

Letters: B batch, N images of an epoch, K labels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multilabel_average_precision,
    multilabel_f1_score,
    multilabel_stat_scores,
)

from .metrics import BINS, class_row
from .thresholds import NO_CHOICE, best_thresholds

__all__ = ["LabelMetrics"]


class LabelMetrics(nn.Module):
    """Mean average precision, macro F1 at thresholds, calibration error and counts of each label, over an epoch.

    Keeps all scores of the epoch, which average precision and the best thresholds need. Labels of an image that nobody
    knows, -1, count nowhere. On several ranks whatever reads them gathers those of all, so all ranks must ask.

    Args:
        num_classes: K.

    Attributes:
        thresholds: Above which probability each label is said to be there, K numbers; a half at first.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.thresholds: list[float] | None = [NO_CHOICE] * num_classes
        # One state, so that ranks gather once.
        self._seen = CatMetric(nan_strategy="disable")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Keep a batch.

        Args:
            probabilities: `(B, K)` in 0..1.
            target: Labels, int64 `(B, K)` of 0 and 1, -1 where one is unknown.
        """
        self._seen.update(torch.cat([probabilities, target.to(probabilities.dtype)], 1))

    def best_thresholds(self) -> list[float]:
        """For each label the threshold of the largest F1, see `thresholds.best_thresholds`."""
        return best_thresholds(*self._all())

    def compute(self) -> dict[str, Tensor]:
        """`map`, `f1` at the thresholds and `ece`, each in 0..1."""
        scores, target = self._all()
        return {
            "map": self._average_precisions().sum() / (target > 0).any(0).sum().clamp(min=1),
            "f1": multilabel_f1_score(
                self._decided(scores), target, self.num_classes, ignore_index=-1, validate_args=False
            ),
            "ece": binary_calibration_error(scores[target >= 0], target[target >= 0], BINS, validate_args=False),
        }

    def per_class(self, class_names: list[str]) -> list[dict[str, Any]]:
        """For each label what `metrics.EpochMetrics.per_class` says, its `average_precision` and its `threshold`."""
        scores, target = self._all()
        counts = multilabel_stat_scores(
            self._decided(scores), target, self.num_classes, average="none", ignore_index=-1, validate_args=False
        ).reshape(self.num_classes, 5)
        extra = zip(self._average_precisions().tolist(), self.thresholds or [], strict=True)
        return [
            class_row(name, row) | {"average_precision": precision, "threshold": threshold}
            for name, row, (precision, threshold) in zip(class_names, counts.tolist(), extra, strict=True)
        ]

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._seen.reset()

    def _all(self) -> tuple[Tensor, Tensor]:
        scores, target = self._seen.compute().split(self.num_classes, 1)
        return scores.contiguous(), target.long()

    def _average_precisions(self) -> Tensor:
        """Of each label `(K,)`; 0 where no image has it, for it is undefined there."""
        scores, target = self._all()
        there = (target > 0).any(0)
        found = scores.new_zeros(self.num_classes)
        if there.any():
            found[there] = multilabel_average_precision(
                scores[:, there],
                target[:, there],
                int(there.sum()),
                average="none",
                ignore_index=-1,
                validate_args=False,
            )
        return found

    def _decided(self, scores: Tensor) -> Tensor:
        return (scores > scores.new_tensor(self.thresholds)).long()
