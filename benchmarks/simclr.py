"""A training step of SimCLR against lightly's parts, with one forward pass for both views."""

from functools import partial

from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor

from lightning_vision.self_supervised import SimCLR
from lightning_vision.self_supervised.simclr import nt_xent

from .joint_losses import loss_row
from .joint_steps import BACKBONE, SIDE, Peer, step_rows
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on 128 images of 32 pixels; the loss of 1,024 images.

    Args:
        quick: One repetition with eight images, and four.
    """
    learner, criterion = partial(SimCLR, backbone=BACKBONE, head_layers=2), NTXentLoss(temperature=0.1)

    def ours(views: Tensor) -> Tensor:
        return nt_xent(views[0], views[1], 0.1)

    def peer(views: Tensor) -> Tensor:
        loss: Tensor = criterion(views[0], views[1])
        return loss

    return [
        *step_rows("SimCLR", learner, _Lightly, SimCLRTransform(input_size=SIDE), quick),
        loss_row("`nt_xent`", "lightly's `NTXentLoss`", ours, peer, (2, 1024, 128), quick),
    ]


class _Lightly(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.criterion = SimCLRProjectionHead(512, 512, 128), NTXentLoss(temperature=0.1)

    def loss(self, views: list[Tensor]) -> Tensor:
        embeddings = [self.head(self.backbone(view)) for view in views]
        loss: Tensor = self.criterion(*embeddings)
        return loss
