"""Pairwise covering arrays: few rows in which every two levels that may meet do meet, and how several share them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

__all__ = ["Row", "covering", "dealt", "pairs_of"]

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


def dealt(rows: Sequence[Row], players: int) -> list[list[int]]:
    """Numbers of rows for each player: each meets every level of every factor, and together they have every row.

    Greedy: a player takes the row with most levels that are new to it, of equals the one that fewest have; what nobody
    has then goes to those who have least.
    """
    hands: list[list[int]] = []
    taken = [0] * len(rows)
    for _ in range(players):
        hand, missing = list[int](), set[tuple[str, Any]]().union(*(row.items() for row in rows))
        while missing:
            best = max(range(len(rows)), key=lambda row: (len(missing & set(rows[row].items())), -taken[row], -row))
            hand.append(best)
            taken[best] += 1
            missing -= set(rows[best].items())
        hands.append(hand)
    for row in [row for row, count in enumerate(taken) if not count]:
        min(hands, key=len).append(row)
    return [sorted(hand) for hand in hands]
