"""The study of samples left out runs as its protocol says and tells of every arm."""

import re

import pytest

from support import ROOT


def test_the_study_writes_a_row_for_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_curation

    made = study_curation.blocks(quick=True)
    table = made["study_curation"]

    images = dict(re.findall(r"^\| ([^|]+) \| (\d+)% \|", table, re.MULTILINE))
    assert list(images) == [arm.name for arm in study_curation.ARMS]
    assert list(made)[1:] == ["curation_dynamic_data_pruning", "curation_data_diet", "curation_hard_batches"]
    # One epoch of two, and of the second epoch a half of the samples, or 30% of the batches.
    assert images["plain"] == "100" and images["plain, half the epochs"] == "50"
    assert images["a random half"] == images["DataDiet, half after 1 epoch"] == "75"
    assert 60 <= int(images["HardBatches"]) <= 68
