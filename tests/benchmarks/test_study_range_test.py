"""The study of the range test's proposal runs as its protocol says."""

import re

import pytest

from support import ROOT


def test_the_study_tells_of_each_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_range_test

    (table,) = study_range_test.blocks(quick=True).values()

    peaks = dict(re.findall(r"^\| (peak [^|]+) \| ([\d.]+) \|", table, re.MULTILINE))
    assert list(peaks) == list(study_range_test.ARMS)
    assert 0.02 < float(peaks["peak proposed"]) < 1
