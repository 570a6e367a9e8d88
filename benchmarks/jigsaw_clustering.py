"""What a batch of montages costs a network beside the two views of a method that contrasts images."""

from functools import partial

import timm
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from lightning_vision.self_supervised.jigsaw_clustering import JigsawClustering

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

BACKBONE = "resnet18"


def rows(quick: bool) -> list[Row]:
    """Train on 32 images, patches and views given.

    Args:
        quick: One repetition with two images.
    """
    return [_row(side, quick) for side in (64, 128, 192)]


def _row(side: int, quick: bool) -> Row:
    torch.manual_seed(0)
    plain = [{"crop": None, "flip": 0.0, "jitter": 0.0, "grey": 0.0}]
    image = torch.rand(2 if quick else 32, 3, side, side)
    ours = JigsawClustering(backbone=BACKBONE, views=plain)
    theirs, criterion = timm.create_model(BACKBONE, num_classes=128), NTXentLoss(temperature=0.07)
    draws = torch.rand(len(image), ours.draws)

    def step() -> None:
        ours.losses(image, draws)["loss"].backward()

    def peer(views: list[Tensor]) -> None:
        criterion(*[theirs(view) for view in views]).backward()

    sides = {"ours": unprepared(step), "peer": unprepared(partial(peer, [image, image.flip(3)]))}
    times = take_turns(sides, *(1, 0) if quick else (7, 1))
    what = f"`JigsawClustering`, a step on 32 images of {side} pixels, {BACKBONE}"
    against = "lightly's `NTXentLoss` of two views"
    return Row.slowdown(what, against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu", "<= 0.70")
