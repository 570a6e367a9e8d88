"""A training step of MoCo, version 2, against lightly's parts, which shuffle the batch and back."""

from copy import deepcopy
from functools import partial

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
from lightly.transforms import MoCoV2Transform
from torch import Tensor

from lightning_vision.self_supervised import MoCo

from .joint_steps import BACKBONE, SIDE, Peer, step_rows
from .side_by_side import Row

__all__ = ["rows"]

QUEUE = 4096


def rows(quick: bool) -> list[Row]:
    """Train on 128 images of 32 pixels, with a queue of 4,096.

    Args:
        quick: One repetition with eight images.
    """
    ours = partial(MoCo, backbone=BACKBONE, queue_size=QUEUE, hidden_dim=512)
    return step_rows("MoCo", ours, _Lightly, MoCoV2Transform(input_size=SIDE), quick)


class _Lightly(Peer):
    def __init__(self) -> None:
        super().__init__()
        self.head = MoCoProjectionHead(512, 512, 128)
        self.slow_backbone, self.slow_head = (deepcopy(it).requires_grad_(False) for it in (self.backbone, self.head))
        self.criterion = NTXentLoss(temperature=0.2, memory_bank_size=(QUEUE, 128))

    def follow(self) -> None:
        update_momentum(self.backbone, self.slow_backbone, 0.99)
        update_momentum(self.head, self.slow_head, 0.99)

    def loss(self, views: list[Tensor]) -> Tensor:
        queries = self.head(self.backbone(views[0]))
        with torch.no_grad():
            shuffled, order = batch_shuffle(views[1])
            keys = batch_unshuffle(self.slow_head(self.slow_backbone(shuffled)), order)
        loss: Tensor = self.criterion(queries, keys)
        return loss
