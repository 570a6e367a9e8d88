"""The cards' pictures can be drawn, always the same, and small files come of it."""

from pathlib import Path
from types import ModuleType

import pytest

from support import ROOT

NAMES = sorted(file.stem for file in (ROOT / "benchmarks" / "pictures").glob("*.py") if not file.stem.startswith("_"))


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_drawn_and_stands_in_the_docs(name: str, tmp_path: Path) -> None:
    from benchmarks import pictures

    path = pictures.save(name, tmp_path)
    first = path.read_bytes()

    assert first.startswith(b"\x89PNG")
    assert pictures.save(name, tmp_path).read_bytes() == first
    assert (ROOT / "docs" / "pictures" / path.name).is_file()


def test_a_picture_of_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import matplotlib.pyplot
    import numpy as np

    from benchmarks import pictures

    def draw() -> matplotlib.pyplot.Figure:
        figure, axes = matplotlib.pyplot.subplots()
        axes.imshow(np.random.default_rng(0).random((300, 300)))
        return figure

    noise = ModuleType("benchmarks.pictures.noise")
    vars(noise).update(draw=draw)
    monkeypatch.setitem(sys.modules, noise.__name__, noise)

    with pytest.raises(ValueError, match=r"noise\.png has \d+ bytes, more than 150000"):
        pictures.save("noise", tmp_path)
