"""The figures of the recipes' networks: ratios beside torchvision's, in the block of their card."""

import pytest

from support import ROOT


def test_a_table_compares_a_recipes_network_with_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import recipes

    made = recipes.blocks(quick=True)
    rows = made["recipe_convnext"].splitlines()[2:]

    assert list(made) == ["recipe_convnext"]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [
        "`convnext_tiny`, 28.6 M parameters, forward of 2 images of 128 pixels",
        "`convnext_tiny`, 28.6 M parameters, training step of 2 images of 128 pixels",
    ]
    assert [row.split(" | ")[1] for row in rows] == ["torchvision's `convnext_tiny`, 28.6 M"] * 2


def test_each_recipe_of_a_paper_has_its_block_in_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import recipes

    cards = {card: (ROOT / "docs" / "methods" / f"{card}.md").read_text() for card, *_ in recipes.PAIRS}

    assert [card for card, text in cards.items() if f"<!-- figures:recipe_{card} -->" not in text] == []
