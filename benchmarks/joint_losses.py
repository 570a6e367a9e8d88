"""What losses of several views cost, forwards and backwards, beside a peer's of the same."""

from collections.abc import Callable

import torch
from torch import Tensor

from .side_by_side import Row, take_turns, unprepared

__all__ = ["loss_row"]

Loss = Callable[[Tensor], Tensor]


def loss_row(what: str, against: str, ours: Loss, peer: Loss, shape: tuple[int, ...], quick: bool) -> Row:
    """Compute a loss of embeddings and their gradient.

    Args:
        what: What is ours.
        against: What the peer is.
        ours: Of embeddings `shape`.
        peer: The same.
        shape: Views, rows and width of the embeddings.
        quick: One repetition with four rows.
    """
    views, rows, width = shape
    random = torch.Generator().manual_seed(0)
    embeddings = torch.randn(views, 4 if quick else rows, width, generator=random).requires_grad_()

    def run(loss: Loss) -> None:
        torch.autograd.grad(loss(embeddings), embeddings)

    turns = (1, 0) if quick else (15, 1)
    times = take_turns({"peer": unprepared(lambda: run(peer)), "ours": unprepared(lambda: run(ours))}, *turns)
    size = f", {rows} images, embeddings of {width}"
    return Row.slowdown(what + size, against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu", "<= 1.00")
