"""The study of scores gives a row to each set, and what is like the real images scores better."""

import re

import pytest

from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_study_writes_a_row_for_each_set() -> None:
    from benchmarks import study_generation_scores as study

    (block,) = study.blocks(quick=True).values()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \|", block, re.MULTILINE))
    distance = {name: float(value) for name, value in rows.items()}

    assert list(distance) == [*study.ARMS, *(f"other digits, {it} and {it}" for it in study.COUNTS)]
    assert distance["other digits"] < distance["without sevens"] < distance["noise of 0.3"] < distance["noise alone"]
    # Of fewer images the same sets are further apart.
    assert distance["other digits, 100 and 100"] > 2 * distance["other digits, 400 and 400"]
