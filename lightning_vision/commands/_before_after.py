"""What a calibration changes in the figures of a split, as numbers, as rows of a table and as diagrams."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from lightning_vision.classification.metrics import accuracy, label_accuracy
from lightning_vision.classification.reliability_bins import Reliability, reliability

__all__ = ["compared", "rows_of"]


def compared(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], bins: int
) -> tuple[dict[str, dict[str, float]], dict[str, Reliability]]:
    """Figures and bins of one split, `before` and `after`.

    Args:
        before: Logits `(N, K)`, and classes `(N,)` or labels `(N, K)`.
        after: The same, calibrated.
        bins: Bins of confidence.

    Returns:
        For `before` and `after` the figures `nll`, `ece` and `acc`; and for both the bins.
    """
    measured = {"before": _figures(*before, bins), "after": _figures(*after, bins)}
    return {when: figures for when, (figures, _) in measured.items()}, {
        when: found for when, (_, found) in measured.items()
    }


def rows_of(figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, str]:
    """Rows of a table, one for each split.

    Args:
        figures: From `compared`, by split.
    """
    rows = {"split": "".join(f"{name:>18}" for name in ("nll", "ece", "acc"))}
    for split, told in figures.items():
        old, new = told["before"], told["after"]
        rows[split] = "".join(f"{old[key]:9.4f} > {new[key]:6.4f}" for key in old)
    return rows


def _figures(logits: Tensor, target: Tensor, bins: int) -> tuple[dict[str, float], Reliability]:
    if target.ndim == 1:
        nll, acc, probabilities = F.cross_entropy(logits, target), accuracy(logits, target), logits.softmax(1)
    else:
        nll = F.binary_cross_entropy_with_logits(logits, target.float())
        acc, probabilities = label_accuracy(logits, target), logits.sigmoid()
    found = reliability(probabilities, target, bins)
    return {"nll": float(nll), "ece": found.ece, "acc": float(acc)}, found
