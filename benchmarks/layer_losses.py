"""What losses of layers and logits cost forwards and backwards, beside the plainest of their kind."""

from collections.abc import Callable

import torch
from torch import Tensor, cdist
from torch.nn import KLDivLoss, MSELoss

from lightning_vision.callbacks.distillation.attention_transfer import attention_transfer_loss
from lightning_vision.callbacks.distillation.decoupled_kd import decoupled_kd_loss
from lightning_vision.callbacks.distillation.feature_hints import hint_loss
from lightning_vision.callbacks.distillation.relational_kd import relational_angle_loss, relational_distance_loss

from .side_by_side import Row, take_turns, unprepared

__all__ = ["rows"]

Loss = Callable[[Tensor, Tensor], Tensor]


def rows(quick: bool) -> list[Row]:
    """Batches of 64: logits of 1,000 classes, maps of 64 channels at 16x16, embeddings of 512 numbers.

    Args:
        quick: One repetition of a batch of four.
    """
    count, turns = (4, (1, 0)) if quick else (64, (21, 1))
    random = torch.Generator().manual_seed(0)
    logits, maps, embeddings = (
        torch.randn(2, count, *shape, generator=random) for shape in ((1000,), (64, 16, 16), (512,))
    )
    labels = torch.randint(1000, (count,), generator=random)
    divergence, square = KLDivLoss(reduction="batchmean"), MSELoss()

    def ordinary(student: Tensor, teacher: Tensor) -> Tensor:
        return 16 * divergence((student / 4).log_softmax(dim=1), (teacher / 4).softmax(dim=1))

    def decoupled(student: Tensor, teacher: Tensor) -> Tensor:
        return decoupled_kd_loss(student, teacher, labels)

    def distances(student: Tensor, teacher: Tensor) -> Tensor:
        return square(cdist(student, student), cdist(teacher, teacher))

    plain = "distances by `cdist`, compared"
    return [
        _row("`decoupled_kd_loss`", "distillation by `KLDivLoss`", decoupled, ordinary, logits, turns),
        _row("`hint_loss`", "`MSELoss`", hint_loss, square, maps, turns),
        _row("`attention_transfer_loss`", "`MSELoss`", attention_transfer_loss, square, maps, turns),
        _row("`relational_distance_loss`", plain, relational_distance_loss, distances, embeddings, turns),
        _row("`relational_angle_loss`", plain, relational_angle_loss, distances, embeddings, turns),
    ]


def _row(what: str, against: str, ours: Loss, peer: Loss, both: Tensor, turns: tuple[int, int]) -> Row:
    student, teacher = both[0].requires_grad_(), both[1]

    def run(loss: Loss) -> None:
        torch.autograd.grad(loss(student, teacher), student)

    times = take_turns({"peer": unprepared(lambda: run(peer)), "ours": unprepared(lambda: run(ours))}, *turns)
    return Row.slowdown(what, against, times["ours"]["cpu"], times["peer"]["cpu"], "cpu")
