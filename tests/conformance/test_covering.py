"""The covering array: every two levels that may meet do, in few rows, whatever the factors."""

from itertools import combinations, product

import pytest

from support.conformance.conditions import FACTORS, conditions
from support.conformance.covering import covering, dealt, pairs_of


def together(rows):
    return set().union(*map(pairs_of, rows))


@pytest.mark.parametrize("sizes", [(2, 2), (2, 3, 4), (3, 3, 3, 3), (2, 2, 2, 2, 2, 2)])
def test_every_pair_of_levels_is_covered(sizes):
    factors = {f"factor {number}": range(size) for number, size in enumerate(sizes)}
    rows = covering(factors, lambda row: True)
    every = sum(left * right for left, right in combinations(sizes, 2))

    assert len(together(rows)) == every
    assert (
        max(a * b for a, b in combinations(sizes, 2))
        <= len(rows)
        < 2 * max(a * b for a, b in combinations(sizes, 2)) + 3
    )


def test_an_illegal_pair_is_left_out_and_all_others_are_covered():
    factors = {"a": (1, 2), "b": (1, 2), "c": (1, 2)}
    rows = covering(factors, lambda row: row["a"] + row["b"] < 4)

    assert all(row["a"] + row["b"] < 4 for row in rows)
    assert len(together(rows)) == 12 - 1


def test_rows_that_are_given_are_kept_and_not_repeated():
    factors = {"a": (1, 2), "b": (1, 2)}
    start = [{"a": 2, "b": 2}]

    assert covering(factors, lambda row: True, start) == [*start, {"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}]


def test_the_conditions_cover_every_pair_that_lightning_allows_also_without_manual_optimisation():
    rows = [condition.levels for condition in conditions()]
    automatic = [row for row in rows if row["module"] != "manual"]
    every = [dict(zip(FACTORS, levels, strict=True)) for levels in product(*FACTORS.values())]
    legal = [row for row in every if row["module"] != "manual" or (row["accumulate"], row["clip"]) == (1, "off")]

    assert together(legal) == together(rows)
    assert together(row for row in legal if row["module"] != "manual") == together(automatic)
    assert len(rows) < 16


@pytest.mark.parametrize("players", [1, 2, 5, 20])
def test_each_player_meets_every_level_and_together_they_have_every_row(players):
    rows = [condition.levels for condition in conditions()]
    hands = dealt(rows, players)
    levels = {(factor, level) for factor, them in FACTORS.items() for level in them}

    assert [{item for row in hand for item in rows[row].items()} for hand in hands] == [levels] * players
    assert set().union(*hands) == set(range(len(rows)))
    assert sum(map(len, hands)) <= max(len(rows), 4 * players)
    assert [len(set(hand)) for hand in hands] == [len(hand) for hand in hands]
