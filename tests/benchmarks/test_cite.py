"""Citations come out of docstrings whole and go between their markers."""

import pytest

from support import ROOT


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


class Published:
    """Has all sections.

    Reference: Author and Other 2020,
        arXiv:2001.00001

    BibTeX:
        @article{author2020,
          title = {A Title},

          year = {2020},
        }

    Differs from the paper: not at all.
    """


class Unpublished:
    """Has a reference only.

    Reference: Author 2020
    """


def test_reference_and_entry_are_taken_whole_and_nothing_else() -> None:
    from benchmarks.cite import citation

    assert citation(Published).splitlines() == [
        "Author and Other 2020, arXiv:2001.00001",
        "",
        "```bibtex",
        "@article{author2020,",
        "  title = {A Title},",
        "",
        "  year = {2020},",
        "}",
        "```",
    ]


def test_a_docstring_without_an_entry_is_refused() -> None:
    from benchmarks.cite import citation

    with pytest.raises(ValueError, match="the docstring of Unpublished has no section BibTeX:"):
        citation(Unpublished)


def test_a_block_is_replaced_and_the_rest_of_the_card_stays() -> None:
    from benchmarks.cite import citation, cited
    from lightning_vision.callbacks import SAM

    card = "before\n<!-- cite:SAM -->\nold\n<!-- /cite:SAM -->\nafter\n"

    assert cited(card) == f"before\n<!-- cite:SAM -->\n\n{citation(SAM)}\n\n<!-- /cite:SAM -->\nafter\n"
    assert cited(cited(card)) == cited(card)


def test_a_marker_of_something_unknown_is_refused() -> None:
    from benchmarks.cite import cited

    with pytest.raises(ValueError, match="<!-- cite:Sam -->: the catalogue has no Sam"):
        cited("<!-- cite:Sam --><!-- /cite:Sam -->")
