"""The study of Intra-Fusion runs and has all its arms at each sparsity."""

import re

import pytest

from support import ROOT


def test_the_study_writes_a_table_of_all_arms_at_each_sparsity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_intra_fusion import ARMS, SPARSITIES, blocks

    made = blocks(quick=True)

    assert list(made) == ["study_intra_fusion"]
    assert re.findall(r"^\| (L1.*?|Intra.*?) \|", made["study_intra_fusion"], re.MULTILINE) == [*ARMS] * len(SPARSITIES)
