"""The study of distillation runs, has all its arms, and teachers help by more than chance where it says so."""

import re
from statistics import mean, stdev

import pytest

from support import ROOT


def test_the_study_writes_a_table_of_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_distillation import ARMS, blocks

    (table,) = blocks(quick=True).values()

    assert re.findall(r"^\| (\w.*?) \| (?:6|18) \|", table, re.MULTILINE) == list(ARMS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("taught", ["KD", "feature hints", "BornAgain, 3 generations"])
def test_at_twenty_labels_a_class_a_taught_student_beats_the_same_student_alone(
    taught: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paired mean over seeds 0 to 4 is above two standard errors."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_distillation import SEEDS, STEPS, TEACHER_STEPS, teach, train

    gains = []
    for seed in SEEDS:
        states, _ = teach(seed, TEACHER_STEPS)
        plain, better = (train(arm, seed, STEPS, states).accuracy for arm in ("plain", taught))
        gains.append(better - plain)

    assert mean(gains) > 2 * stdev(gains) / len(gains) ** 0.5
