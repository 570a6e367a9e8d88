"""Each public callback around a fit: exceptions, a second fit, evaluation, copies, a compiled module."""

import pytest

from support.conformance.conditions import Condition
from support.conformance.families import first_of_its_family
from support.conformance.lifecycle import (
    acts,
    compiled_is_plain,
    copies_work,
    evaluates,
    fits_again,
    leaves_nothing,
    own_stream_only,
    working,
)
from support.conformance.subjects import subjects
from support.conformance.traces import leftovers

# Two calls in training: of a method that replays the batch, one falls into the replay. Validation calls 1 is the
# sanity check's, 4 the second epoch's first.
MOMENTS = [("training_step", 3), ("training_step", 4), ("validation_step", 1), ("validation_step", 4)]

# What surrounds a compiled step is the seam's; tracing it costs more than ten fits.
COMPILED = [
    pytest.param(it, id=it.name, marks=[] if first_of_its_family(it) else pytest.mark.slow) for it in subjects()
]


def test_around_a_fit(subject):
    expected = working(subject)
    checks = (acts, leaves_nothing, fits_again, evaluates, copies_work, own_stream_only)

    assert [f"{check.__name__}: {line}" for check in checks for line in check(subject, expected)] == []


@pytest.mark.parametrize("subject", COMPILED)
def test_a_compiled_module_trains_as_one_that_is_not(subject, compiler):
    assert "\n".join(compiled_is_plain(subject)) == ""


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_exception_leaves_nothing_behind(subject, accumulate):
    found = [
        line for step, call in MOMENTS for line in leftovers(subject, Condition(accumulate=accumulate), step, call)
    ]

    assert "\n".join(found) == ""
