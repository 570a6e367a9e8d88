"""A training step of a learner of two views beside lightly's parts in the loop that its documentation gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from lightning_vision.self_supervised.momentum import MomentumLearner

from .side_by_side import Row, Side, take_turns

__all__ = ["BACKBONE", "SIDE", "Peer", "step_rows"]

BACKBONE, SIDE = "resnet18", 32
Views = list[Tensor]


class Peer(nn.Module, ABC):
    """A method put together from lightly's heads and losses, with a forward pass a view."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm.create_model(BACKBONE, num_classes=0)

    @abstractmethod
    def loss(self, views: Views) -> Tensor:
        """Of two views `(B, C, H, W)`."""

    def follow(self) -> None:
        """Move what follows, before the step."""


def step_rows(
    what: str, learner: Callable[[], MomentumLearner], peer: Callable[[], Peer], transform: Any, quick: bool
) -> list[Row]:
    """A step of ours and one of lightly's, from given views and from images; and the views alone.

    Args:
        what: The method's name.
        learner: Makes ours.
        peer: Makes lightly's.
        transform: lightly's, of a PIL image to its views.
        quick: One repetition with eight images.
    """
    torch.manual_seed(0)
    images = torch.rand(8 if quick else 128, 3, SIDE, SIDE)
    pictures = [to_pil_image(image) for image in images]
    ours, theirs = learner(), peer()
    optimizers = [torch.optim.SGD(it.parameters(), lr=1e-3) for it in (ours, theirs)]
    draws = torch.rand(len(images), ours.draws)

    def our_views() -> Views:
        return ours.views(images, draws, *ours.statistics())

    def their_views() -> Views:
        return [torch.stack(view) for view in zip(*map(transform, pictures), strict=True)]

    def our_step(views: Callable[[], Views]) -> None:
        loss = ours.compare(*ours.embeddings(views()))["loss"]
        _descend(loss, optimizers[0])
        if hasattr(ours, "target"):
            ours.target.follow(ours.source, 0.99)
        if ours.queue is not None:
            ours.queue.enqueue()

    def their_step(views: Callable[[], Views]) -> None:
        theirs.follow()
        _descend(theirs.loss(views()), optimizers[1])

    given = our_views()
    pairs = {
        "training step, views given": (lambda: our_step(lambda: given), lambda: their_step(lambda: given)),
        "training step from images": (partial(our_step, our_views), partial(their_step, their_views)),
        "the two views": (our_views, their_views),
    }
    sides: dict[str, Side] = {
        f"{name}, {whose}": (lambda run=run: run)  # type: ignore[misc]  # bound here, as the loop goes on
        for name, pair in pairs.items()
        for whose, run in zip(("ours", "theirs"), pair, strict=True)
    }
    times = take_turns(sides, *(1, 0) if quick else (7, 1))
    return [
        Row.slowdown(
            f"`{what}`, {name}, {len(images)} images of {SIDE} pixels, `{BACKBONE}`",
            "lightly's parts",
            times[f"{name}, ours"]["cpu"],
            times[f"{name}, theirs"]["cpu"],
            "cpu",
            "<= 1.00",
        )
        for name in pairs
    ]


def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's, without types
    optimizer.step()
