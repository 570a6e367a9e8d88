"""Decisions where an image may have several labels, each at a threshold of its own.

Letters: N images, B of a batch, K labels.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

__all__ = ["label_sets", "label_table", "thresholds_of", "worst_decision"]

HALF = 0.5


def thresholds_of(module: Any, classes: int) -> list[float]:
    """Above which probability each label is there: the module's `thresholds` if they are K numbers, else halves."""
    said: Any = getattr(module, "thresholds", None)
    usable = isinstance(said, list) and len(said) == classes and all(isinstance(it, (int, float)) for it in said)
    return [float(it) for it in said] if usable else [HALF] * classes


def worst_decision(probability: Tensor, label: Tensor, thresholds: list[float]) -> tuple[Tensor, Tensor]:
    """The most confident wrong decision for each image.

    Args:
        probability: `(B, K)`.
        label: Which are there, bool `(B, K)`.
        thresholds: K numbers.

    Returns:
        Its confidence `(B,)`, -1 where all are right, and int64 `(B, 2)`: the label that is there and was not seen, and
        the one that was seen and is not there; one of the two is -1.
    """
    yes = probability > probability.new_tensor(thresholds)
    wrong = torch.where(yes, probability, 1 - probability).where(yes != label, -1.0)
    score, at = wrong.max(1)
    invented = yes.gather(1, at[:, None])[:, 0]
    return score, torch.stack([at.where(~invented, -1), at.where(invented, -1)], 1)


def label_table(probability: Tensor, label: Tensor, thresholds: list[float]) -> dict[str, Any]:
    """Counts of images, predicted and right `(K, 3)`, average precision and threshold, K numbers each.

    Average precision is 0 for a label that no image has, for it is undefined there.
    """
    yes, there = probability > probability.new_tensor(thresholds), label.any(0)
    precision = probability.new_zeros(len(there))
    if there.any():
        precision[there] = multilabel_average_precision(
            probability[:, there], label[:, there].long(), int(there.sum()), average="none", validate_args=False
        )
    return {
        "counts": torch.stack([label.sum(0), yes.sum(0), (label & yes).sum(0)], 1),
        "average_precision": precision.tolist(),
        "threshold": thresholds,
    }


def label_sets(label: Tensor, names: list[str]) -> tuple[Tensor, list[str]]:
    """Each set of labels that occurs as a class: of bool `(N, K)` the numbers `(N,)`, and names as `cat, dog`."""
    rows, classes = label.unique(dim=0, return_inverse=True)
    said = [", ".join(names[it] for it in row.nonzero()[:, 0].tolist()) or "none" for row in rows]
    return classes, said
