"""Any two public callbacks give the same run in both list orders, or are refused in both."""

from itertools import combinations, combinations_with_replacement

import pytest

from lightning_vision.callbacks.hooks.method import Method, Place
from support.conformance.families import family
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
    """`count` subjects of toy classes, of sixteen seams in turns."""
    seams = [type(f"Seam{number}", (Method,), {"place": Place.OBSERVE, "neutral": ()}) for number in range(16)]
    return [Subject(type(f"Toy{number:02}", (seams[number % len(seams)],), {})) for number in range(count)]


def test_few_callbacks_all_meet():
    assert len(chosen(many(12))) == 66


def test_of_sixty_callbacks_every_two_families_meet_and_each_callback_meets_four_and_not_many():
    toys = many(60)
    pairs = chosen(toys)
    seams = {family(it.kind) for it in toys}
    met = {frozenset(family(it.kind) for it in pair) for pair in pairs}
    partners = [sum(it in pair for pair in pairs) for it in toys]

    assert met == {frozenset(two) for two in combinations_with_replacement(seams, 2)}
    assert len(pairs) < 200
    assert 4 <= min(partners) <= max(partners) <= 12
