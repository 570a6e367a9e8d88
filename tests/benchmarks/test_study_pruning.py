"""The study of pruning runs, has all its arms, and each but the dense one has a tenth of its weights."""

import re

import pytest

from support import ROOT


def test_the_study_writes_a_table_of_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_pruning import ARMS, blocks

    made = blocks(quick=True)
    rows = re.findall(r"^\| (\w.*?) \| ([\d.]+)% \|", made["study_pruning"], re.MULTILINE)

    assert list(made) == ["study_pruning"]
    assert [name for name, _ in rows] == list(ARMS)
    assert [zeros for _, zeros in rows] == ["0.0", *["90.0"] * (len(ARMS) - 1)]


@pytest.mark.slow
def test_digits_with_a_tenth_of_the_weights_are_read_within_a_point_of_the_dense_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The mean over seeds 0 to 4, of the study's gradual arm."""
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_pruning import ARMS, SEEDS, STEPS, train

    dense, _, gradual, *_ = ARMS
    lost = [train(dense, seed, STEPS).accuracy - train(gradual, seed, STEPS).accuracy for seed in SEEDS]

    assert sum(lost) / len(lost) <= 1.0
