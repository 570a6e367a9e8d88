"""Each callback that comes from a paper has a card, and no part of it is missing or out of date."""

import ast
import re
import sys
from inspect import Parameter, signature
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
COLUMNS = ["argument", "symbol", "unit, range", "default", "neutral", "the authors'"]


def card(entry: Entry) -> str:
    """The card is called as the file that defines the callback."""
    return (ROOT / "docs" / "methods" / f"{entry.path.split('.')[-2]}.md").read_text()


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section {heading}"
    return found[1]


def cells(row: str) -> list[str]:
    """The cells of a table's row; `\\|` is no border."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def spellings(default: object) -> set[str]:
    """How a card may write a default: 1.0 as 1, True as true, none at all as an empty cell."""
    if default is Parameter.empty:
        return {""}
    if isinstance(default, float):
        return {str(default), f"{default:g}"}
    return {str(default).lower()} if isinstance(default, bool) else {str(default)}


def peers(benchmark: Path) -> list[str]:
    """What a benchmark imports from others: packages, as `pytorch-optimizer`, and names in backquotes."""
    found: list[str] = []
    for node in ast.parse(benchmark.read_text()).body:
        if isinstance(node, ast.Import):
            imported: dict[str, list[str]] = {alias.name: [] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported = {node.module: [f"`{alias.name}`" for alias in node.names]}
        else:
            continue
        for module, names in imported.items():
            root = module.partition(".")[0]
            if root not in {*sys.stdlib_module_names, "lightning_vision"}:
                # A row against plain Lightning or torch is none against a rival.
                found += names if root in ("lightning", "torch") else [root.replace("_", "-"), *names]
    return found


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
    assert {f"figures:{name}", f"cite:{entry.name}"} <= {block for block, _ in blocks}
    assert "<!-- figures:" in section(text, "Measured here")
    assert [block for block, content in blocks if not content.strip()] == []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_the_cost_is_told_beside_a_rivals(entry: Entry) -> None:
    rows = re.findall(r"^\| .*$", section(card(entry), "Cost"), re.MULTILINE)
    rivals = peers(ROOT / "benchmarks" / f"{entry.path.split('.')[-2]}.py")

    assert rivals != []
    assert [row for row in rows if any(rival in cells(row)[1] for rival in rivals)] != []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_the_settings_are_the_constructors(entry: Entry) -> None:
    header, rule, *rows = re.findall(r"^\|.*\|$", section(card(entry), "Settings"), re.MULTILINE)
    told = {row[0].strip("`"): row[3].strip("`") for row in map(cells, rows)}

    assert cells(header) == COLUMNS
    assert [len(cells(row)) for row in (rule, *rows)] == [len(COLUMNS)] * (1 + len(rows))
    parameters = signature(entry.load()).parameters.values()
    assert list(told) == [parameter.name for parameter in parameters]
    assert [
        f"{parameter.name} is {parameter.default!r}, not {told[parameter.name]}"
        for parameter in parameters
        if told[parameter.name] not in spellings(parameter.default)
    ] == []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_the_neutral_settings_are_the_classs(entry: Entry) -> None:
    rows = [cells(row) for row in re.findall(r"^\| `.*$", section(card(entry), "Settings"), re.MULTILINE)]
    neutral = entry.load().neutral
    declared = {} if isinstance(neutral, str) else {name: value for each in neutral for name, value in each.items()}

    told = {row[0].strip("`"): row[4].strip("`") for row in rows if row[4]}
    assert told.keys() == declared.keys()
    assert [name for name, value in declared.items() if told[name] not in spellings(value)] == []


@pytest.mark.parametrize("entry", CALLBACKS, ids=lambda entry: entry.name)
def test_citations_are_those_of_the_docstrings(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.cite import cited

    assert cited(card(entry)) == card(entry)
