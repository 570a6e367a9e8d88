"""What a classifier does about classes of unequal size: weights in its loss, and training logits moved by priors.

Letters: B batch, K classes, tau `tau`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .class_counts import balanced_weights, pos_weight, training_counts
from .logit_adjustment import LogitAdjustment
from .losses import BinaryCrossEntropy

__all__ = ["Balancing"]


class Balancing(nn.Module):
    """Corrects a classifier's training for rare classes, once the training images of each class are counted.

    Nothing of it is in a state dict; `training_counts` is what a checkpoint must carry.

    Args:
        weigh: Whether the loss weighs the classes by their counts.
        tau: Factor on the log of each class's share that is added to the logits of training; neutral 0.

    Attributes:
        training_counts: What `use` was called with; None before.
        adjustment: What moves the logits; None where tau is 0, and before the counts are known.

    Shape:
        Logits `(B, K)`, result the same.
    """

    def __init__(self, weigh: bool, tau: float) -> None:
        super().__init__()
        self.weigh, self.tau = weigh, tau
        self.training_counts: dict[str, Any] | None = None
        self.adjustment: LogitAdjustment | None = None

    @property
    def wanted_by(self) -> str:
        """The setting that needs the counts; empty where none does."""
        if self.weigh:
            return "class_weights='balanced'"
        return f"logit_adjustment={self.tau}" if self.tau else ""

    def count(self, datamodule: Any, num_classes: int) -> dict[str, Any]:
        """The datamodule's training images of each class, see `class_counts.training_counts`.

        Raises:
            ValueError: its sampler draws all classes equally often already, or it cannot tell the counts.
        """
        if getattr(datamodule, "sampler", None) == "balanced":
            source = type(datamodule).__name__
            raise ValueError(
                f"sampler='balanced' of {source} draws every class equally often already, so {self.wanted_by} would "
                "correct for rare classes twice; drop one of the two"
            )
        return training_counts(datamodule, num_classes, self.wanted_by)

    def use(self, counts: dict[str, Any], criterion: nn.Module, device: torch.device) -> None:
        """Weigh the loss and adjust logits by these counts, as far as either is wanted.

        Args:
            counts: From `count`.
            criterion: A loss of `losses`, whose weights are set.
            device: Where weights and adjustment shall lie.
        """
        self.training_counts, classes = counts, counts["classes"]
        if self.tau:
            self.adjustment = LogitAdjustment(self.tau, classes).to(device)
        if self.weigh and isinstance(criterion, BinaryCrossEntropy):
            criterion.pos_weight = torch.tensor(pos_weight(classes, counts["images"]), device=device)
        elif self.weigh:
            criterion.weight = torch.tensor(balanced_weights(classes), device=device)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits as the loss of training sees them."""
        return logits if self.adjustment is None else self.adjustment(logits)
