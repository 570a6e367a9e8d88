"""What a batch says about its images: the images themselves, and the labels that metrics compare with."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["image_and_target", "known_labels"]


def image_and_target(batch: Any) -> tuple[Tensor, Tensor]:
    """The images and the targets of a batch, which is a mapping with these keys or begins with the two.

    Args:
        batch: `{"image", "target", ...}` or `(image, target, ...)`.
    """
    return (batch["image"], batch["target"]) if isinstance(batch, Mapping) else (batch[0], batch[1])


def known_labels(target: Tensor, num_classes: int, multilabel: bool) -> Tensor:
    """What metrics compare with: the class of each image, or with several labels an image 0 and 1 for each label.

    Args:
        target: Classes, int64 `(B,)`, or the probability of each class or label `(B, K)`, NaN for a label that nobody
            knows.
        num_classes: K.
        multilabel: Whether an image may have several labels.

    Returns:
        int64, `(B,)` or, with several labels an image, `(B, K)`, -1 for an unknown one.
    """
    if multilabel:
        return F.one_hot(target, num_classes) if target.ndim == 1 else (target > 0.5).long() - target.isnan().long()
    return target.argmax(1) if target.ndim == 2 else target
