"""Any two public callbacks give the same run in both list orders, or are refused in both."""

from itertools import combinations

import pytest

from lightning_vision.callbacks.hooks.method import Method, Place
from support.conformance.pairs import chosen, either_order
from support.conformance.subjects import Subject, subjects

BY_DEFAULT = chosen(subjects())
REST = [pair for pair in combinations(subjects(), 2) if pair not in BY_DEFAULT]


def expect_equal(pairs, record_property):
    found = []
    for left, right in pairs:
        lines, refusal = either_order(left, right)
        found += [f"{left.name} and {right.name}: {line}" for line in lines]
        if refusal:
            record_property("refused pairs", f"{left.name} and {right.name}: {refusal}")

    assert "\n".join(found) == ""


def test_with_those_after_it(subject, record_property):
    expect_equal([pair for pair in BY_DEFAULT if pair[0] is subject], record_property)


@pytest.mark.slow
def test_with_all_the_others(subject, record_property):
    expect_equal([pair for pair in REST if pair[0] is subject], record_property)


def many(count):
    """`count` subjects of toy classes, the places taking turns."""
    places = list(Place)
    return [
        Subject(type(f"Toy{number:02}", (Method,), {"place": places[number % len(places)], "neutral": ()}))
        for number in range(count)
    ]


def test_few_callbacks_all_meet():
    assert len(chosen(many(12))) == 66


def test_of_sixty_callbacks_each_meets_one_of_each_place_and_not_many():
    toys = many(60)
    pairs = chosen(toys)
    places = {
        it.name: {other.kind.place for pair in pairs if it in pair for other in pair if other != it} for it in toys
    }
    partners = [sum(it in pair for pair in pairs) for it in toys]

    assert all(met == set(Place) for met in places.values())
    assert len(pairs) < 400
    assert max(partners) <= 20
