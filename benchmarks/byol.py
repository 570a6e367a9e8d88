"""A training step of BYOL against lightly's parts, with two forward passes instead of four."""

from copy import deepcopy
from functools import partial

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from lightly.transforms import BYOLTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from torch import Tensor

from lightning_vision.self_supervised import BYOL

from .joint_steps import BACKBONE, SIDE, Peer, step_rows
from .side_by_side import Row

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Train on 128 images of 32 pixels.

    Args:
        quick: One repetition with eight images.
    """
    ours = partial(BYOL, backbone=BACKBONE, hidden_dim=1024)
    transform = BYOLTransform(BYOLView1Transform(input_size=SIDE), BYOLView2Transform(input_size=SIDE))
    return step_rows("BYOL", ours, _Lightly, transform, quick)


class _Lightly(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.predictor = BYOLProjectionHead(512, 1024, 256), BYOLPredictionHead(256, 1024, 256)
        self.slow_backbone, self.slow_head = (deepcopy(it).requires_grad_(False) for it in (self.backbone, self.head))
        self.criterion = NegativeCosineSimilarity()

    def follow(self) -> None:
        update_momentum(self.backbone, self.slow_backbone, 0.99)
        update_momentum(self.head, self.slow_head, 0.99)

    def loss(self, views: list[Tensor]) -> Tensor:
        foretold = [self.predictor(self.head(self.backbone(view))) for view in views]
        with torch.no_grad():
            slow = [self.slow_head(self.slow_backbone(view)) for view in views]
        loss: Tensor = 0.5 * (self.criterion(foretold[0], slow[1]) + self.criterion(foretold[1], slow[0]))
        return loss
