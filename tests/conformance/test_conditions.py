"""Each public callback under every condition of the covering array, on one process and on two."""

import pytest
import torch

from support.conformance.checks import Verdict, refused_without_reason, under
from support.conformance.conditions import conditions
from support.conformance.subjects import missing_parts

ONE = [(row, it) for row, it in enumerate(conditions()) if it.processes == 1]
TWO = [(row, it) for row, it in enumerate(conditions()) if it.processes == 2]


def report(subject, verdicts, record_property):
    for condition, verdict in verdicts.items():
        if verdict.refusal:
            record_property("refused conditions", f"{condition}: {verdict.refusal}")


def test_a_callback_brings_its_settings_and_its_card(subject):
    assert missing_parts(subject.kind) == []


def test_one_process(subject, tmp_path, record_property):
    verdicts = {condition: under(subject, condition, row, tmp_path) for row, condition in ONE}
    report(subject, verdicts, record_property)

    assert "\n".join(line for verdict in verdicts.values() for line in verdict.found) == ""
    assert refused_without_reason({condition: verdict.refusal for condition, verdict in verdicts.items()}) == []


def on_this_rank(subject, folder):
    return [under(subject, condition, row, folder) for row, condition in TWO]


def test_two_processes(subject, tmp_path, two_ranks, record_property):
    ranks: list[list[Verdict]] = two_ranks(on_this_rank, subject, tmp_path)
    verdicts = {condition: verdict for (_, condition), verdict in zip(TWO, ranks[0], strict=True)}
    report(subject, verdicts, record_property)

    found = [f"rank {rank}: {line}" for rank, it in enumerate(ranks) for verdict in it for line in verdict.found]

    assert "\n".join(found) == ""
    assert refused_without_reason({condition: verdict.refusal for condition, verdict in verdicts.items()}) == []
    assert different_ranks(ranks) == []


def different_ranks(ranks):
    """Guarantee 7: parameters that the two ranks do not share bit for bit; batch norm's buffers are each rank's own."""
    found = []
    for (_, condition), left, right in zip(TWO, *ranks, strict=True):
        names = [name for name in left.weights if "running" not in name]
        if not all(torch.equal(left.weights[name], right.weights[name]) for name in names):
            found.append(f"{condition}: the ranks have different parameters")
        if left.refusal != right.refusal:
            found.append(f"{condition}: one rank refuses ({left.refusal or right.refusal}) and the other does not")
    return found


@pytest.mark.parametrize("condition", conditions(), ids=str)
def test_the_conditions_that_were_tried(condition, record_property):
    record_property("conditions (every two levels meet)", str(condition))

    assert condition.precision
