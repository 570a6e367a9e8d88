"""Each callback that comes from a paper has a card, and no part of it is missing or out of date."""

import re
from pathlib import Path

import pytest

from lightning_vision.catalogue import Entry, entries

ROOT = Path(__file__).parents[1]
CALLBACKS = [entry for entry in entries() if entry.kind == "callback" and entry.paper]
HEADINGS = [
    "Use",
    "What it computes",
    "Settings",
    "When not to use it",
    "Cost",
    "Measured here",
    "What proves it",
    "With others",
    "Whom we follow",
    "Cite",
]
PEERS = re.compile(r"timm|torchvision|kornia|pytorch-optimizer|Lightning|torch's|CosineAnnealingWarmRestarts")


def card(entry: Entry) -> str:
    """The card is called as the file that defines the callback."""
    return (ROOT / "docs" / "methods" / f"{entry.path.split('.')[-2]}.md").read_text()


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section {heading}"
    return found[1]


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_a_card_has_all_headings_in_their_order(entry: Entry) -> None:
    text = card(entry)

    assert re.findall(r"^# (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE) == [
        entry.name
    ]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_a_card_begins_with_a_picture_made_here(entry: Entry) -> None:
    name = entry.path.split(".")[-2]

    assert f"](../pictures/{name}.png)" in card(entry).partition("## ")[0]
    assert (ROOT / "docs" / "pictures" / f"{name}.png").is_file()
    assert (ROOT / "benchmarks" / "pictures" / f"{name}.py").is_file()


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_no_block_of_a_card_is_empty(entry: Entry) -> None:
    name, text = entry.path.split(".")[-2], card(entry)
    blocks = re.findall(r"<!-- (\w+:\w+) -->(.*?)<!-- /\1 -->", text, re.DOTALL)

    assert len(blocks) == text.count("<!-- /")
    assert {f"figures:{name}", f"figures:lowdata_{name}", f"cite:{entry.name}"} <= {block for block, _ in blocks}
    assert [block for block, content in blocks if not content.strip()] == []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_the_cost_is_told_beside_a_rivals(entry: Entry) -> None:
    rows = re.findall(r"^\| .*$", section(card(entry), "Cost"), re.MULTILINE)

    assert [row for row in rows if PEERS.search(row)] != []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_citations_are_those_of_the_docstrings(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.cite import cited

    assert cited(card(entry)) == card(entry)
