"""Public callbacks under the conditions of the covering array, on one process and on two.

By default a callback meets every level, and those of a seam together every two levels; with `-m slow` each meets all.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import Callback

from lightning_vision.callbacks.hooks.method import Method
from support.conformance.checks import Verdict, different_ranks, refused_without_reason, under
from support.conformance.conditions import Condition, conditions
from support.conformance.families import some_conditions
from support.conformance.runs import fit, plain_run
from support.conformance.subjects import missing_parts

EXTENTS = [
    pytest.param(some_conditions, id="some"),
    pytest.param(lambda subject: list(enumerate(conditions())), id="every", marks=pytest.mark.slow),
]


def on(processes, rows):
    return [(row, it) for row, it in rows if it.processes == processes]


def report(subject, verdicts, record_property):
    for condition, verdict in verdicts.items():
        if verdict.refusal:
            record_property("refused conditions", f"{condition}: {verdict.refusal}")


def test_a_callback_brings_its_settings_and_its_card(subject):
    assert missing_parts(subject.kind) == []


@pytest.mark.parametrize("extent", EXTENTS)
def test_one_process(subject, extent, tmp_path, record_property):
    rows = on(1, extent(subject))
    verdicts = {condition: under(subject, condition, row, tmp_path) for row, condition in rows}
    report(subject, verdicts, record_property)

    assert "\n".join(line for verdict in verdicts.values() for line in verdict.found) == ""
    assert refused_without_reason({condition: verdict.refusal for condition, verdict in verdicts.items()}) == []


def on_this_rank(subject, rows, folder):
    return [under(subject, condition, row, folder) for row, condition in rows]


@pytest.mark.parametrize("extent", EXTENTS)
def test_two_processes(subject, extent, tmp_path, two_ranks, record_property):
    rows = on(2, extent(subject))
    ranks: list[list[Verdict]] = two_ranks(on_this_rank, subject, rows, tmp_path)
    verdicts = {condition: verdict for (_, condition), verdict in zip(rows, ranks[0], strict=True)}
    report(subject, verdicts, record_property)

    found = [f"rank {rank}: {line}" for rank, it in enumerate(ranks) for verdict in it for line in verdict.found]

    assert "\n".join(found) == ""
    assert refused_without_reason({condition: verdict.refusal for condition, verdict in verdicts.items()}) == []
    assert [line for both in zip(*ranks, strict=True) for line in different_ranks(*both)] == []


@pytest.mark.parametrize("condition", conditions(), ids=str)
def test_under_each_condition_something_is_trained(condition, record_property):
    """Also in fp16, where a scale too high would skip all steps and every comparison would hold."""
    record_property("conditions (every two levels meet)", str(condition))
    torch.manual_seed(1)
    before = condition.make_module().state_dict()
    after = plain_run(replace(condition, processes=1)).module
    moved = [name for name, value in before.items() if not torch.equal(value, after[name])]

    assert len(moved) >= len(before) - 1  # a bias before batch norm has no gradient


@pytest.mark.parametrize("module", ["plain", "dict batches", "manual"])
@pytest.mark.parametrize("needs", ["any size", "detections"])
def test_modules_that_have_what_some_callbacks_need_are_trained(needs, module):
    ours, plain = (plain_run(Condition(module=module, needs=it)) for it in (needs, ""))
    torch.manual_seed(1)
    before = Condition(module=module, needs=needs).make_module().state_dict()
    moved = [name for name, value in before.items() if not torch.equal(value, ours.module[name])]

    assert len(moved) >= len(before) - 1
    assert needs != "any size" or all(torch.equal(ours.module[name], plain.module[name]) for name in before)


def test_two_callbacks_meet_on_a_module_that_has_what_either_needs():
    kinds = [type(f"Toy{number}", (Method,), {"needs": it}) for number, it in enumerate(("", "any size", "detections"))]
    chosen = [[Condition().on_behalf_of(left, right).needs for left in kinds] for right in kinds]
    answer = Condition(needs="detections").make_module().eval()(torch.zeros(2, 1, 6, 5))

    assert chosen == [["", "any size", "detections"], ["any size", "any size", "detections"], ["detections"] * 3]
    assert [sorted(it) for it in answer] == [["boxes", "labels", "scores"]] * 2


def test_in_fp16_some_steps_are_skipped_and_some_are_taken():
    scales = []

    class Scales(Callback):
        def on_train_batch_end(self, trainer, *args):
            scales.append(trainer.precision_plugin.scaler.get_scale())

    fit(Condition("fp16"), [Scales()])

    assert {after / before for before, after in pairwise(scales)} == {0.5, 1.0, 2.0}
