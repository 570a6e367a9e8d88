"""The study of folding runs and tells of every network, rank and gate."""

import re

import pytest

from support import ROOT


def test_the_study_writes_both_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_folded

    made = study_folded.blocks(quick=True)
    rounded = re.findall(r"^\| (?:resnet|vit).* \| (\d+) \| \S+ \| (\S+) \|$", made["study_merging"], re.MULTILINE)

    assert list(made) == ["study_merging", "study_gates"]
    assert [rank for rank, _ in rounded] == ["4", "16", "4", "16"]
    assert all(0 < float(it) < 1e-5 for _, it in rounded)
    assert len(re.findall(r"^\| (?:pixel|noise)", made["study_gates"], re.MULTILINE)) == 3
