"""What decides which weights go: a criterion, asked at a moment of training for masks of a given sparsity."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import LightningModule
from torch import Generator, Tensor

__all__ = ["Criterion", "Moment"]


@dataclass(frozen=True)
class Moment:
    """When a criterion is asked; nothing in here may be changed.

    Args:
        step: Optimizer steps done.
        weights: The weights that may be pruned, by name, masked ones at zero.
        kept: Their masks so far, boolean, by name; all True where nothing was pruned yet.
        module: The network as a whole, which is called as `module(images)`.
        images: Of a training batch, `(B, C, H, W)`, on the module's device, or None if `needs_images` is False.
        random: What random criteria draw from, on the CPU.
    """

    step: int
    weights: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    module: LightningModule
    images: Tensor | None
    random: Generator


class Criterion(ABC):
    """Decides which weights are kept. Rank 0 alone asks; what it says holds for all ranks."""

    # Whether `Moment.images` is needed; then weights are first pruned when the first batch is there.
    needs_images: ClassVar[bool] = False

    def fits(self, module: LightningModule) -> None:  # noqa: B027  (most fit all)
        """Refuse, by a ValueError before the first step, a network that the criterion cannot judge."""

    @abstractmethod
    def keep(self, moment: Moment, count: int) -> Mapping[str, Tensor]:
        """Masks, boolean, by the names of `moment.weights`, in which `count` weights in all are True.

        None that was masked in `moment.kept` turns True again.

        Args:
            moment: When.
            count: Weights that stay, over all of `moment.weights`; at most those that `moment.kept` has left.
        """

    def observe(self, weights: Mapping[str, Tensor]) -> None:  # noqa: B027  (most look at nothing)
        """See weights and their gradients before each optimizer step: unscaled, summed over ranks and micro-batches.

        Args:
            weights: The parameters that may be pruned, by name, with their `grad`.
        """

    def state_dict(self) -> dict[str, Any]:
        """What `observe` has gathered, for the checkpoint."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Take `state_dict` back."""
