"""The loss of VICReg against lightly's."""

from lightly.loss import VICRegLoss
from torch import Tensor

from lightning_vision.self_supervised.vicreg import vicreg_loss

from .joint_losses import loss_row
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Two views of 256 images.

    Args:
        quick: One repetition with four images.
    """
    theirs = VICRegLoss()

    def peer(views: Tensor) -> Tensor:
        loss: Tensor = theirs(views[0], views[1])
        return loss

    def ours(views: Tensor) -> Tensor:
        return vicreg_loss(views[0], views[1], 25.0, 25.0, 1.0)["loss"]

    return [loss_row("`vicreg_loss`", "lightly", ours, peer, (2, 256, width), quick) for width in (512, 1024, 2048)]
