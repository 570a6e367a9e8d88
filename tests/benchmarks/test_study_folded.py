"""The study of folding runs and tells of every network, rank and gate."""

import re
import subprocess
import sys
from pathlib import Path

from support import ROOT


def test_the_study_writes_both_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"<!-- figures:{it} --><!-- /figures:{it} -->\n" for it in ("study_merging", "study_gates"))
    )
    command = [sys.executable, "-m", "benchmarks", "study_folded", "--quick", "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    rounded = re.findall(r"^\| (?:resnet|vit).* \| (\d+) \| \S+ \| (\S+) \|$", page.read_text(), re.MULTILINE)

    assert done.returncode == 0, done.stderr
    assert [rank for rank, _ in rounded] == ["4", "16", "4", "16"]
    assert all(0 < float(it) < 1e-5 for _, it in rounded)
    assert len(re.findall(r"^\| (?:pixel|noise)", page.read_text(), re.MULTILINE)) == 3
