"""Two callbacks together: which pairs the default run tries, and that the order of the list means nothing."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement

from support.conformance.checks import EVERYTHING
from support.conformance.conditions import Condition
from support.conformance.families import family
from support.conformance.runs import Outcome, compare, fit
from support.conformance.subjects import Subject

__all__ = ["FEW", "chosen", "either_order"]

# Up to so many pairs (12 callbacks) all are tried by default; beyond, each callback meets so many others.
FEW, PARTNERS = 66, 4
# Two micro-batches a step and a short last window: what a pair can get wrong that one of them alone cannot.
TOGETHER = Condition(accumulate=2)


def chosen(subjects: Sequence[Subject], few: int = FEW) -> list[tuple[Subject, Subject]]:
    """All pairs if they are few, else so many that every two families meet and each callback meets `PARTNERS` others.

    The choice is a function of the list: of a family's callbacks the one that has met fewest comes next.
    """
    every = list(combinations(subjects, 2))
    if len(every) <= few:
        return every
    families: dict[type, list[Subject]] = {}
    for own in subjects:
        families.setdefault(family(own.kind), []).append(own)
    met, pairs = Counter[str](), set[frozenset[str]]()

    def meet(own: Subject, others: Sequence[Subject]) -> None:
        new = [it for it in others if it.name != own.name and frozenset((own.name, it.name)) not in pairs]
        if new:
            other = min(new, key=lambda it: (met[it.name], it.name))
            pairs.add(frozenset((own.name, other.name)))
            met.update((own.name, other.name))

    for left, right in combinations_with_replacement(families.values(), 2):
        meet(min(left, key=lambda it: (met[it.name], it.name)), right)
    for own in subjects:
        for _ in range(PARTNERS - met[own.name]):
            meet(own, subjects)
    return [(left, right) for left, right in every if frozenset((left.name, right.name)) in pairs]


def either_order(left: Subject, right: Subject) -> tuple[list[str], str]:
    """What differs between the two list orders, and the sentence if the pair is refused."""
    first, second = (_together(*order) for order in ((left, right), (right, left)))
    refusals = [it.refusal for it in (first, second)]
    if any(refusals):
        # Each order may name the one that comes first as the subject of its sentence.
        proper = [it for it in refusals if it.endswith(".") and len(it.split()) >= 8]
        return ([] if len(proper) == 2 else [f"not refused in a sentence in both orders: {refusals}"]), refusals[0]
    return [f"the order matters: {line}" for line in compare(first, second, EVERYTHING)], ""


def _together(one: Subject, other: Subject) -> Outcome:
    condition, callbacks = TOGETHER.on_behalf_of(one.kind, other.kind), [one.make(), other.make()]
    return fit(condition, callbacks, refusable=[one.name, other.name], max_epochs=1)
