"""The study of balances runs, and tells of every arm the same five things."""

import re

import pytest

from support import ROOT


def test_the_study_writes_a_row_for_each_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_vae

    (table,) = study_vae.blocks(quick=True).values()
    rows = re.findall(r"^\| (beta .*?|gamma .*?) \| (.*) \|$", table, re.MULTILINE)
    kl = [float(numbers.split(" | ")[1]) for _, numbers in rows]

    assert [arm for arm, _ in rows] == ["beta 0.01", "gamma computed"]
    assert all(len(numbers.split(" | ")) == 5 for _, numbers in rows)
    # A cheap divergence is larger, after two steps already.
    assert kl[0] > kl[1] > 0
