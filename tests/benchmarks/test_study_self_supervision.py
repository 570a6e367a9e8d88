"""The study of learners without labels runs as its protocol says and tells of every learner, probe and seed."""

import re

import pytest

from support import ROOT


def test_the_study_writes_its_three_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import study_self_supervision

    made = study_self_supervision.blocks(quick=True)

    assert list(made) == [f"study_self_supervision_{it}" for it in ("knn", "linear", "fine_tune")]
    # Raw pixels of test digits are worth the same whatever a network learns.
    for probe, least, most in (("knn", 60, 75), ("linear", 15, 35)):
        table = made[f"study_self_supervision_{probe}"]
        assert re.findall(r"^\| (raw pixels|SimCLR|RotNet) \|", table, re.MULTILINE) == [
            "raw pixels",
            "SimCLR",
            "RotNet",
        ]
        pixels = float(re.findall(r"^\| raw pixels \| ([\d.]+)", table, re.MULTILINE)[0])
        assert least < pixels < most
    assert re.findall(r"^\| (from .*?) \| [\d.]+ \|", made["study_self_supervision_fine_tune"], re.MULTILINE) == [
        "from scratch",
        "from SimCLR's file",
    ]
