"""The loss of DINO, centre and all, against lightly's."""

from lightly.loss import DINOLoss
from torch import Tensor

from lightning_vision.self_supervised.dino import Centre, dino_loss

from .joint_losses import loss_row
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Ten views of 32 images, the first two seen by the teacher.

    Args:
        quick: One repetition with four images.
    """
    return [_row(width, quick) for width in (1024, 4096, 16384)]


def _row(width: int, quick: bool) -> Row:
    theirs, centre = DINOLoss(output_dim=width, teacher_temp=0.07), Centre(width, 0.9)

    def peer(views: Tensor) -> Tensor:
        loss: Tensor = theirs([*views[:2].detach()], [*views])
        return loss

    def ours(views: Tensor) -> Tensor:
        teacher = [*views[:2].detach()]
        loss = dino_loss(teacher, [*views], centre.mean, 0.07, 0.1)
        centre.collect(0, teacher)
        centre.follow()
        return loss

    return loss_row("`dino_loss` of ten views", "lightly", ours, peer, (10, 32, width), quick)
