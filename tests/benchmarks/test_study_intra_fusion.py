"""The study of Intra-Fusion runs and has all its arms at each sparsity."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT


def test_the_study_writes_a_table_of_all_arms_at_each_sparsity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.study_intra_fusion import ARMS, SPARSITIES

    page = tmp_path / "page.md"
    page.write_text("<!-- figures:study_intra_fusion --><!-- /figures:study_intra_fusion -->")
    command = [sys.executable, "-m", "benchmarks", "study_intra_fusion", "--quick", "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\| (L1.*?|Intra.*?) \|", page.read_text(), re.MULTILINE) == [*ARMS] * len(SPARSITIES)
