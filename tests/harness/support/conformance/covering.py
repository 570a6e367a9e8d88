"""Pairwise covering arrays: few rows in which every two levels that may meet do meet."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

__all__ = ["Row", "covering", "pairs_of"]

Row = Mapping[str, Any]
Pair = frozenset[tuple[str, Any]]


def pairs_of(row: Row) -> set[Pair]:
    """Every two (factor, level) of a row."""
    return {frozenset(two) for two in combinations(row.items(), 2)}


def covering(
    factors: Mapping[str, Sequence[Any]], legal: Callable[[Row], bool], start: Iterable[Row] = ()
) -> list[Row]:
    """`start` and as many legal rows as needed until every pair of levels that some legal row holds is covered.

    Greedy: the row that covers most of what is missing comes next, the first of equals in the order of the levels.
    """
    rows = list(start)
    every = [row for levels in product(*factors.values()) if legal(row := dict(zip(factors, levels, strict=True)))]
    missing = set[Pair]().union(*map(pairs_of, every)) - set[Pair]().union(*map(pairs_of, rows))
    while missing:
        best = max(every, key=lambda row: len(pairs_of(row) & missing))
        rows.append(best)
        missing -= pairs_of(best)
    return rows
