"""The study of drop paths runs and has a row for each final probability."""

import re

import pytest

from support import ROOT


def test_the_study_writes_a_row_for_each_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_drop_path import FINALS, blocks

    made = blocks(quick=True)

    assert list(made) == ["study_drop_path"]
    assert re.findall(r"^\| (0\S+) \|", made["study_drop_path"], re.MULTILINE) == [f"{it:g}" for it in FINALS]
