"""Each public callback's arguments, and what it does not accept; the exceptions that classes declare."""

import pytest

from support.conformance.settings import refuses_what_shards, round_trips, takes_a_twin_with_a_name
from support.conformance.subjects import subjects

# Frozen: a new exception is a decision, made here in sight of everybody.
DECLARED: dict[str, tuple[str, str, str]] = {
    "BDKD": (
        "optimizers hold the teacher besides the module's parameters; files have it in the callback's state",
        "",
        "",
    ),
    "BornAgain": (
        "",
        "",
        "each generation begins with batch norm's statistics and counts as they were at the start",
    ),
    **dict.fromkeys(
        ("DataDiet", "DynamicDataPruning", "HardBatches"),
        ("", "", "batch norms see, and networks draw for, the batches that there are"),
    ),
    "Distillation": (
        "optimizers hold adapters of layers besides the module's parameters; files have them in its state",
        "",
        "",
    ),
    "EvoNorm": (
        "",
        "an EvoNorm layer stands where a norm was, so files hold its weights under the norm's name",
        "",
    ),
    "DistillationToken": (
        "for a network with one head optimizers hold a second one besides the module's parameters; files have it in "
        "the callback's state",
        "",
        "",
    ),
    "FeatureGates": (
        "gates and their optimizer stand in the callback's state; keys of module and optimizers are plain",
        "",
        "",
    ),
    "HeadFirst": (
        "",
        "",
        "frozen parts are in evaluation mode, so their batch norms see no batch and their dropouts draw nothing",
    ),
    "LoRA": (
        "optimizers hold two factors a layer besides the module's parameters; files have them in the callback's state",
        "",
        "",
    ),
    "LotteryTickets": (
        "",
        "",
        "going back puts batch norm's statistics and counts to what they were at an early step",
    ),
    "LowRank": (
        "",
        "two thin Linear layers stand where one was, so files hold their weights as NAME.0 and NAME.1",
        "",
    ),
    "MEALV2": ("optimizers hold a discriminator besides the module's parameters; files have it in its state", "", ""),
    "RegMixup": ("", "", "dropout draws for twice as many images, plain and mixed ones"),
    "ScaleKD": (
        "optimizers hold projectors of features besides the module's parameters; files have them in its state",
        "",
        "",
    ),
    "StructuredPruning": (
        "",
        "files hold the masked network at its full width; when a fit has ended the module is cut to narrower layers",
        "",
    ),
    "StyleAugment": (
        "optimizers hold the noise's strength besides the module's parameters; files have it in its state",
        "",
        "",
    ),
    "Unfreeze": (
        "",
        "",
        "frozen parts are in evaluation mode, so their batch norms see no batch and their dropouts draw nothing",
    ),
}


@pytest.mark.parametrize("check", [round_trips, refuses_what_shards, takes_a_twin_with_a_name])
def test_settings(subject, check):
    assert "\n".join(check(subject)) == ""


def test_exceptions_from_a_plain_runs_state_are_the_declared_ones(record_property):
    exceptions = {it.name: (it.kind.adds_parameters, it.kind.changes_architecture, it.kind.rests) for it in subjects()}
    exceptions = {name: reasons for name, reasons in exceptions.items() if any(reasons)}
    for name, (adds, changes, rests) in exceptions.items():
        record_property(
            "declared exceptions",
            f"{name}: adds parameters: {adds or 'no'}; architecture: {changes or 'no'}; rests: {rests or 'no'}",
        )
    record_property("declared exceptions", f"{len(exceptions)} of {len(subjects())} callbacks declare one")

    assert exceptions == DECLARED
