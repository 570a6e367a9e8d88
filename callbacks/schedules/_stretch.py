"""A stretch of the training, over which something moves, and the curves along which it may."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from ..hooks._checks import above_zero, number
from ..hooks._clock import Interval
from ..hooks.values import Moment

__all__ = ["Interval", "Shape", "Stretch", "checked_shape", "finite", "moved"]

Shape = Literal["linear", "cosine", "exponential"]


def moved(share: float, start: float, end: float, shape: Shape = "linear") -> float:
    """Where a number is that moves from `start` to `end`; both are met exactly.

    Args:
        share: Of the way, 0..1.
        start: At 0.
        end: At 1; of an exponential as `start` not 0 and of its sign.
        shape: `linear`; `cosine`, half a wave, slow at both ends; `exponential`, by the same factor each step.

    Example:
        >>> [[round(moved(share / 4, 1.0, 16.0, shape), 2) for share in range(5)] for shape in get_args(Shape)]
        [[1.0, 4.75, 8.5, 12.25, 16.0], [1.0, 3.2, 8.5, 13.8, 16.0], [1.0, 2.0, 4.0, 8.0, 16.0]]
    """
    if share <= 0 or share >= 1 or start == end:
        return start if share <= 0 else end
    if shape == "exponential":
        return float(start * (end / start) ** share)
    if shape == "cosine":
        share = (1 - math.cos(math.pi * share)) / 2
    return (1 - share) * start + share * end


def finite(value: object) -> bool:
    """Whether it is a number, and neither infinite nor unknown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def checked_shape(owner: str, shape: str, known: tuple[str, ...] = get_args(Shape)) -> None:
    """Refuse a curve that is none of those."""
    if shape not in known:
        raise ValueError(f"{owner}: shape is {shape!r}; give {', '.join(known[:-1])} or {known[-1]}.")


@dataclass(frozen=True)
class Stretch:
    """From `begin` on, for `length`.

    Args:
        owner: Who speaks in a refusal.
        begin: Where it begins, in the unit of `interval`, >= 0.
        length: How long it is, above 0, likewise; None is the rest of the training.
        interval: `training`, whose unit is the whole training, `epoch`, or `step`, an optimizer step.

    Raises:
        ValueError: a number out of its range; with `training` a stretch that goes past the end of it.
    """

    owner: str
    begin: float
    length: float | None
    interval: Interval

    def __post_init__(self) -> None:
        if self.interval not in get_args(Interval):
            raise ValueError(f"{self.owner}: interval is {self.interval!r}; give training, epoch or step.")
        number(self.owner, "begin", self.begin, 0)
        if self.length is not None:
            above_zero(self.owner, "length", self.length)
        if self.interval == "training" and (self.begin >= 1 or self.begin + (self.length or 0.0) > 1 + 1e-9):
            raise ValueError(
                f"{self.owner}: begin={self.begin:g} and length={self.length} are shares of the training and go past "
                "its end; give less than 1 in all, or interval='epoch' or 'step'."
            )

    def share(self, moment: Moment) -> float:
        """How much of the stretch is done, 0..1."""
        now, end = moment.at(self.interval)
        if now <= self.begin:
            return 0.0
        if self.length is None and end is None:
            return 0.0
        length = self.length if self.length is not None else float(end or 0.0) - self.begin
        return 1.0 if length <= 0 else min(1.0, (now - self.begin) / length)

    def check(self, moment: Moment) -> str | None:
        """Refuse a training whose end is asked for and cannot be told; a warning if the stretch is not all in it.

        Args:
            moment: Where the training stands when it begins.
        """
        _, end = moment.at(self.interval)
        asked = self.interval == "training" or self.length is None
        if asked and moment.done is None:
            raise ValueError(
                f"{self.owner}: the training has no end that can be told, so nobody knows how long the rest of it is; "
                "give the Trainer max_epochs or max_steps, or a length= with interval='epoch' or 'step'."
            )
        if asked and end is None and self.interval == "step" and moment.epochs is not None:
            raise ValueError(
                f"{self.owner}: the optimizer steps of this training cannot be told (manual optimisation, an endless "
                "loader, or accumulation that changes); give a length=, or interval='epoch'."
            )
        if end is not None and self.begin + (self.length or 0.0) > end + 1e-9:
            return (
                f"{self.owner}: the training has {end:g} {self.interval}s, and the stretch from {self.begin:g} on goes "
                "past its end, so it is not all walked; give a smaller begin= or length=."
            )
        return None
