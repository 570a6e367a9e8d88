"""The study of images made by optimisation measures each way and writes it into its card."""

import re

import pytest

from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def test_the_study_writes_a_row_for_each_way_and_layer() -> None:
    from benchmarks import study_images

    made = study_images.blocks(quick=True)
    rows = {name: re.findall(r"^\| (.*?) \| -?[\d.]+ \|", block, re.MULTILINE) for name, block in made.items()}

    assert rows == {
        "study_raised": ["defaults", "without priors"],
        "study_inverted": list(study_images.LAYERS.values()),
        "study_fooled": ["`gradient`", "`evolution`", "`cppn`"],
    }
