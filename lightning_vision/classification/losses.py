"""Losses of classification, as functions and as modules; none of them needs Lightning.

Letters: B batch, K classes, z logits, t target, w class weights, epsilon `label_smoothing`, gamma `gamma`.
Integer targets reach `F.cross_entropy` as the very tensor that was passed in.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Focal", "binary_cross_entropy", "focal", "make_loss"]


def binary_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> Tensor:
    """Binary cross entropy of each label on its own, averaged over labels and images.

    The mean over B and K of `-w_k (p_k t log sigmoid(z) + (1 - t) log(1 - sigmoid(z)))`. Labels that nobody knows, NaN,
    are no part of the mean and give no gradient; where none is known the loss is 0.

    Args:
        logits: `(B, K)`.
        target: Probability of each label `(B, K)` in 0..1, NaN where it is unknown, or the one label of each image,
            int64 `(B,)`.
        weight: Weight w of each class `(K,)`; neutral 1.
        pos_weight: Weight p of each class's yes `(K,)`; neutral 1.
    """
    loss = partial(F.binary_cross_entropy_with_logits, logits, pos_weight=pos_weight)
    if not target.is_floating_point():
        hot = F.one_hot(target, logits.shape[1]) if target.ndim == 1 else target
        return loss(hot.to(logits.dtype), weight)
    known = ~target.isnan()
    kind = torch.promote_types(logits.dtype, torch.float32)
    # Exactly 1 where all is known: accelerators divide by a number as by its rounded inverse, half precision rounds.
    share = known.sum().clamp(min=1).to(kind) / logits.new_full((), logits.numel(), dtype=kind)
    mean = loss(target.nan_to_num(0).to(logits.dtype), known.to(logits.dtype) if weight is None else known * weight)
    return (mean / share).type_as(mean)


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, weight: Tensor | None = None) -> Tensor:
    """Focal loss: cross entropy in which images count the less, the better they are classified already.

    The mean over B of `-w_t (1 - p_t) ** gamma log p_t` with `p = softmax(z)` (Lin et al. 2017, Eq. 5).

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

    Attributes:
        pos_weight: Weight of each class's yes beside its no, `(K,)`; None until it is set.

    Shape:
        logits `(B, K)`; target `(B, K)` in 0..1, NaN where it is unknown, or int64 `(B,)`; result a scalar.
    """

    pos_weight: Tensor | None

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        super().__init__(class_weights)
        self.register_buffer("pos_weight", None, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy(logits, target, self.weight, self.pos_weight)


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
    loss: str | nn.Module,
    num_classes: int,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | Literal["balanced"] | None = None,
    logit_adjustment: float = 0.0,
) -> nn.Module:
    """The loss called `cross_entropy`, `bce` or `focal`, or the given module itself, with its settings checked.

    Weights that are `balanced` are set later, when the classes have been counted; an adjustment is of the logits.

    Raises:
        ValueError: the name is unknown, or the settings do not fit the loss or the number of classes.
    """
    if not (isfinite(logit_adjustment) and logit_adjustment >= 0):
        raise ValueError(f"logit_adjustment must be a finite number of at least 0, got {logit_adjustment}")
    if isinstance(loss, nn.Module):
        if label_smoothing or class_weights is not None or logit_adjustment:
            settings = "label_smoothing, class_weights and logit_adjustment"
            raise ValueError(f"{settings} go with a loss given by name; set them in the module")
        return loss
    weights = _checked_weights(class_weights, num_classes)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie in 0..1, got {label_smoothing}")
    if loss == "cross_entropy":
        return CrossEntropy(label_smoothing, weights)
    if loss not in ("bce", "focal"):
        raise ValueError(f"unknown loss {loss!r}; known are cross_entropy, bce and focal, or pass an nn.Module")
    for name, value in (("label_smoothing", label_smoothing), ("logit_adjustment", logit_adjustment)):
        if value:
            raise ValueError(f"{name}={value} works with loss='cross_entropy', not with loss={loss!r}")
    return BinaryCrossEntropy(weights) if loss == "bce" else Focal(class_weights=weights)


def _checked_weights(weights: Sequence[float] | str | None, num_classes: int) -> Sequence[float] | None:
    if weights is None or weights == "balanced":
        return None
    if isinstance(weights, str):
        raise ValueError(f"class_weights={weights!r} is unknown; pass 'balanced' or {num_classes} numbers")
    if len(weights) != num_classes:
        raise ValueError(f"class_weights has {len(weights)} numbers for {num_classes} classes")
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"class_weights must be finite and at least 0, got {list(weights)}")
    return weights
