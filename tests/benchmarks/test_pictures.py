"""The cards' pictures can be drawn, are those in the docs, and small files come of it.

A picture of the docs was drawn in another process: one that is not always the same is not the same as that either.
"""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from support import ROOT

NAMES = sorted(file.stem for file in (ROOT / "benchmarks" / "pictures").glob("*.py") if not file.stem.startswith("_"))

# By default every sixteenth is drawn, with `-m slow` the others: a picture costs about a second.
DRAWN = [pytest.param(name, marks=pytest.mark.slow if place % 16 else ()) for place, name in enumerate(NAMES)]

# Of 255. A thin line that moved is 0.5, a marker 0.1; letters of another matplotlib, which move all the rest, are 8.
ALIKE, OTHER_LETTERS = 0.05, 15.0


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


def apart(left: Path, right: Path) -> float:
    """The mean difference of two pictures' pixels, of 255; the smaller one is filled up with white."""
    pictures = [np.asarray(Image.open(path).convert("RGB"), dtype=float) for path in (left, right)]
    size = np.max([picture.shape for picture in pictures], axis=0)
    sheets = [np.full(size, 255.0) for _ in pictures]
    for sheet, picture in zip(sheets, pictures, strict=True):
        sheet[: picture.shape[0], : picture.shape[1]] = picture
    return float(np.abs(sheets[0] - sheets[1]).mean())


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_and_is_the_one_in_the_docs(name: str, tmp_path: Path) -> None:
    from benchmarks import pictures

    path = pictures.save(name, tmp_path)
    shown = ROOT / "docs" / "pictures" / path.name
    one_library = Image.open(path).info["Software"] == Image.open(shown).info["Software"]
    assert apart(path, shown) <= (ALIKE if one_library else OTHER_LETTERS)


def test_a_line_that_has_moved_is_noticed(tmp_path: Path) -> None:
    for name, height in (("before", 1.0), ("after", 2.0)):
        figure = Figure(figsize=(9, 3.2))
        figure.subplots().plot([0.0, 0.5, height], linewidth=1)
        figure.savefig(tmp_path / f"{name}.png", dpi=100)

    assert apart(tmp_path / "before.png", tmp_path / "before.png") == 0
    assert apart(tmp_path / "before.png", tmp_path / "after.png") > ALIKE


def test_a_picture_of_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import pictures

    def draw() -> Figure:
        figure = Figure()
        figure.subplots().imshow(np.random.default_rng(0).random((300, 300)))
        return figure

    noise = ModuleType("benchmarks.pictures.noise")
    vars(noise).update(draw=draw)
    monkeypatch.setitem(sys.modules, noise.__name__, noise)

    with pytest.raises(ValueError, match=r"noise\.png has \d+ bytes, more than 150000"):
        pictures.save("noise", tmp_path)
