"""Work on numbered things that ranks share, and one order in which all of them have what came of it."""

from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch import Trainer
from torch import Tensor

from ._readings import from_all_ranks

__all__ = ["by_the_first", "in_order", "shares"]

Told = TypeVar("Told")


def shares(count: int, size: int, rank: int, world: int, even: bool) -> list[range]:
    """The numbers below `count` that a rank works on, at most `size` at a time.

    Args:
        count: How many there are for all ranks.
        size: At least 1.
        rank: Below `world`.
        world: Number of ranks.
        even: Whether each rank has as many as another; else pieces are those of one rank, dealt out in turn.
    """
    if not even:
        return [range(it, min(it + size, count)) for it in range(0, count, size)][rank::world]
    begin, end = (count * it // world for it in (rank, rank + 1))
    return [range(it, min(it + size, end)) for it in range(begin, end, size)]


def in_order(trainer: Trainer, order: Tensor, *rows: Tensor) -> list[Tensor]:
    """Rows of all ranks, which all call this, by ascending `order`.

    Args:
        trainer: Whose ranks.
        order: Of each row of this rank, int64 `(N,)`, on the device.
        rows: Each `(N, ...)`, on the device.
    """
    place = from_all_ranks(trainer, order).argsort()
    return [from_all_ranks(trainer, it)[place] for it in rows]


def by_the_first(trainer: Trainer, act: Callable[[], Told]) -> Told:
    """What `act` returns on the first rank, on all ranks, which all call this.

    Raises:
        ValueError: on all ranks, with the words of what `act` raised there, whose own error the first rank raises.
    """
    outcome: tuple[Told | None, str] = None, ""
    error: Exception | None = None
    if trainer.is_global_zero:
        try:
            outcome = act(), ""
        except Exception as raised:  # of any kind: ranks that wait for an answer would wait for ever
            error, outcome = raised, (None, str(raised) or type(raised).__name__)
    found, refusal = trainer.strategy.broadcast(outcome)
    if error is not None:
        raise error
    if refusal:
        raise ValueError(refusal)
    told: Told = found  # type: ignore[assignment]  # None where `act` returns it
    return told
