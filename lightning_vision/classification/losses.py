"""Losses of classification, as functions and as modules; none of them needs Lightning.

Letters: B batch, K classes, z logits, t target, w class weights, epsilon `label_smoothing`, gamma `gamma`.
Integer targets reach `F.cross_entropy` as the very tensor that was passed in.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Focal", "binary_cross_entropy", "focal", "make_loss"]


def binary_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over B and K of `-w_k (t log sigmoid(z) + (1 - t) log(1 - sigmoid(z)))`.

    Args:
        logits: `(B, K)`.
        target: Probability of each label `(B, K)` in 0..1, or the one label of each image, int64 `(B,)`.
        weight: Weight of each class `(K,)`; neutral 1.
    """
    hot = F.one_hot(target, logits.shape[1]) if target.ndim == 1 else target
    return F.binary_cross_entropy_with_logits(logits, hot.to(logits.dtype), weight)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Mean over B of `-w_t (1 - p_t) ** gamma log p_t` with `p = softmax(z)` (Lin et al. 2017, Eq. 5).

    Args:
        logits: `(B, K)`.
        target: Classes, int64 `(B,)`, or probabilities `(B, K)`, over which the loss of the classes is averaged.
        gamma: How strongly well-classified images are discounted; neutral 0.
        weight: Weight of each class `(K,)`, alpha in the paper; neutral 1.
    """
    if target.ndim == 1:
        log_p = -F.cross_entropy(logits, target, reduction="none")
        loss = -((1 - log_p.exp()) ** gamma) * log_p
        return (loss if weight is None else loss * weight[target]).mean()
    log_p = F.log_softmax(logits, 1)
    loss = -target * (1 - log_p.exp()) ** gamma * log_p
    return (loss if weight is None else loss * weight).sum(1).mean()


class _Weighted(nn.Module):
    """Holds the class weights; they are no part of the state dict."""

    weight: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weight", weight, persistent=False)


class CrossEntropy(_Weighted):
    """Cross entropy of softmax, with label smoothing and class weights.

    Calls `F.cross_entropy(logits, target)`; with class weights its mean is over the weights, as in torch.

    Args:
        label_smoothing: epsilon, share of the target spread evenly over all classes, 0..1; neutral 0.
        class_weights: Weight of each class, K numbers; neutral None.

    Shape:
        logits `(B, K)`; target int64 `(B,)` or probabilities `(B, K)`; result a scalar.

    Reference: Szegedy et al. 2015, arXiv:1512.00567
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, weight=self.weight, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(_Weighted):
    """Binary cross entropy of each label on its own, for images with several labels.

    Args:
        class_weights: Weight of each class, K numbers; neutral None.

    Shape:
        logits `(B, K)`; target `(B, K)` in 0..1 or int64 `(B,)`; result a scalar.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy(logits, target, self.weight)


class Focal(_Weighted):
    """Cross entropy that discounts images which are classified well already.

    Args:
        gamma: How strongly well-classified images are discounted; neutral 0, the paper's value 2.
        class_weights: Weight of each class, K numbers, alpha in the paper; neutral None.

    Shape:
        logits `(B, K)`; target int64 `(B,)` or probabilities `(B, K)`; result a scalar.

    Reference: Lin et al. 2017, arXiv:1708.02002
    """

    def __init__(self, gamma: float = 2.0, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal(logits, target, self.gamma, self.weight)


def make_loss(
    name: str, num_classes: int, label_smoothing: float = 0.0, class_weights: Sequence[float] | None = None
) -> nn.Module:
    """The loss called `name`: `cross_entropy`, `bce` or `focal`.

    Raises:
        ValueError: the name is unknown, or the settings do not fit the loss or the number of classes.
    """
    if class_weights is not None and len(class_weights) != num_classes:
        raise ValueError(f"class_weights has {len(class_weights)} numbers for {num_classes} classes")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
    if name == "cross_entropy":
        return CrossEntropy(label_smoothing, class_weights)
    if name not in ("bce", "focal"):
        raise ValueError(f"unknown loss {name!r}; known are cross_entropy, bce and focal, or pass an nn.Module")
    if label_smoothing:
        raise ValueError(f"label_smoothing={label_smoothing} works with loss='cross_entropy', not with loss={name!r}")
    return BinaryCrossEntropy(class_weights) if name == "bce" else Focal(class_weights=class_weights)
