"""Which callbacks share a seam, and what of the long proofs each of them runs by default.

A seam's hooks are the same code for all its callbacks, so the pairs of conditions are covered by a family together;
with `-m slow` each callback meets all of them alone.
"""

from functools import cache

from lightning_vision.callbacks.hooks.method import Method
from support.conformance.conditions import Condition, conditions
from support.conformance.covering import dealt
from support.conformance.subjects import Subject, subjects

__all__ = ["family", "first_of_its_family", "some_conditions"]


def family(kind: type) -> type:
    """The seam next to `Method` from which a callback comes, by first bases; one of no seam is a family of its own."""
    return kind if kind.__bases__[0] is Method else family(kind.__bases__[0])


@cache
def _members(seam: type) -> list[str]:
    return sorted(it.name for it in subjects() if family(it.kind) is seam)


def first_of_its_family(subject: Subject) -> bool:
    return subject.name == _members(family(subject.kind))[0]


def some_conditions(subject: Subject) -> list[tuple[int, Condition]]:
    """Numbered conditions in which the callback meets every level, and its family every two that may meet."""
    members = _members(family(subject.kind))
    hands = dealt([condition.levels for condition in conditions()], len(members))
    return [(row, conditions()[row]) for row in hands[members.index(subject.name)]]
