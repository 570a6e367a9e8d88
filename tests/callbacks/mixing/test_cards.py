"""The card of MixUp lists the losses that are tested, each as it was found, and CutMix's those that are refused."""

import importlib.util
import sys
from pathlib import Path

import pytest

from support import ROOT

TESTED = Path(ROOT, "tests/callbacks/hooks/test_losses_seen.py")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The rows of the table: a loss, what a share a batch makes of it, what a share a sample does."""
    spec = importlib.util.spec_from_file_location("losses_seen", TESTED)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "losses_seen", module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    words = {True: "mixed", False: "refused"}
    return [f"| {case.name} | {words[case.batch]} | {words[case.sample]} |" for case in module.LOSSES]


def listed(card: str) -> list[str]:
    """The rows of the card's table of losses."""
    lines = Path(ROOT, f"docs/methods/{card}.md").read_text().splitlines()
    start = lines.index("| loss | a share a batch | a share a sample |") + 2
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return lines[start:end]


def test_a_card_lists_the_losses_that_are_tested(table: list[str]) -> None:
    assert listed("mixup") == table


def test_the_other_card_lists_those_that_are_refused(table: list[str]) -> None:
    assert listed("cutmix") == [row for row in table if "refused" in row]
