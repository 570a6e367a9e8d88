"""The loss of Barlow Twins against lightly's."""

from lightly.loss import BarlowTwinsLoss
from torch import Tensor

from lightning_vision.self_supervised.barlow_twins import barlow_twins_loss

from .joint_losses import loss_row
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Two views of 256 images.

    Args:
        quick: One repetition with four images.
    """
    theirs = BarlowTwinsLoss(lambda_param=0.005)

    def peer(views: Tensor) -> Tensor:
        loss: Tensor = theirs(views[0], views[1])
        return loss

    def ours(views: Tensor) -> Tensor:
        return barlow_twins_loss(views[0], views[1], 0.005)["loss"]

    return [
        loss_row("`barlow_twins_loss`", "lightly", ours, peer, (2, 256, width), quick) for width in (512, 1024, 2048)
    ]
