"""The benchmarks run, compare in turns and write their figures into a page. How long anything took is not looked at."""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support import ROOT

NAMES = [path.stem for path in sorted((ROOT / "benchmarks").glob("*.py")) if "\ndef rows(" in path.read_text()]


def chosen(shared: dict[str, set[str]]) -> list[str]:
    """Few benchmarks that together use all that benchmarks share: `shared` has by name the modules that each imports.

    The one that adds most comes next, of equals the first by name.
    """
    missing, found = set[str]().union(*shared.values()), list[str]()
    while missing:
        found.append(max(sorted(shared), key=lambda name: len(shared[name] & missing)))
        missing -= shared[found[-1]]
    return found


def imports(name: str) -> set[str]:
    """The modules beside it that a benchmark imports."""
    return set(re.findall(r"^from \.(\w+) import", (ROOT / "benchmarks" / f"{name}.py").read_text(), re.MULTILINE))


BY_DEFAULT = chosen({name: imports(name) for name in NAMES})
EACH = [pytest.param(name, marks=[] if name in BY_DEFAULT else pytest.mark.slow) for name in NAMES]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture(scope="module")
def benchmark(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Imported before the leak check begins, for rivals set variables when they are imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module(f"benchmarks.{request.param}")


@pytest.mark.parametrize("benchmark", EACH, indirect=True)
def test_a_benchmark_runs_and_has_three_rows_of_one_turn(benchmark: ModuleType) -> None:
    from benchmarks.side_by_side import table

    rows = benchmark.rows(True)

    assert len(re.findall(r"^\| .*\(1\) \|", table(rows), re.MULTILINE)) == len(rows) >= 3


@pytest.mark.parametrize("benchmark", NAMES, indirect=True)
def test_a_benchmark_finds_all_that_it_imports_and_its_figures_stand_in_the_page(benchmark: ModuleType) -> None:
    name = benchmark.__name__.rpartition(".")[2]
    page = (ROOT / "docs" / "speed.md").read_text()
    block = re.search(f"<!-- figures:{name} -->(.*?)<!-- /figures:{name} -->", page, re.DOTALL)

    assert list(inspect.signature(benchmark.rows).parameters) == ["quick"]
    assert block is not None
    assert len(re.findall(r"^\| .*\(\d+\) \|", block[1], re.MULTILINE)) >= 3
    assert re.search(f"`python -m benchmarks {name}( --quick)?`_$", block[1].strip())


def test_the_benchmarks_of_the_default_run_use_all_that_benchmarks_share() -> None:
    used = {"a": {"fits"}, "b": {"fits", "maps"}, "c": {"maps"}, "d": {"taxes"}, "e": set[str]()}

    assert chosen(used) == ["b", "d"]
    assert set().union(*map(imports, BY_DEFAULT)) == set().union(*map(imports, NAMES))
    assert len(BY_DEFAULT) <= 11


def test_the_command_writes_the_rows_that_it_prints_into_the_page(tmp_path: Path) -> None:
    page = shutil.copy(ROOT / "docs" / "speed.md", tmp_path / "speed.md")
    with page.open("a") as file:
        file.write("\n<!-- figures:study_intra_fusion --><!-- /figures:study_intra_fusion -->\n")
    names = ["mixup", "study_intra_fusion"]
    command = [sys.executable, "-m", "benchmarks", *names, "--quick", "--page", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    for name in names:
        block = re.search(f"<!-- figures:{name} -->(.*?)<!-- /figures:{name} -->", page.read_text(), re.DOTALL)
        assert block is not None
        assert block[1].strip() in done.stdout
        assert len(re.findall(r"^\| .*\|$", block[1], re.MULTILINE)) >= 4
        assert f"`python -m benchmarks {name} --quick`_" in block[1]


def test_the_study_writes_a_table_of_all_arms_and_one_for_each_callback() -> None:
    from benchmarks import study_lowdata

    files = study_lowdata.METHODS
    made = study_lowdata.blocks(quick=True)
    every, *each = (re.findall(r"^\| (\w.*?) \| [48] \|", block, re.MULTILINE) for block in made.values())

    assert list(made) == ["study_lowdata", *(f"lowdata_{file}" for file in files.values())]
    plain, both = ["plain", "plain, twice the steps"], "SAM + MixUp"
    assert every == [*plain, *files, both]
    assert each == [[*plain, name, *([both] if name in ("SAM", "MixUp") else [])] for name in files]


def test_few_digits_are_ten_of_each_class_from_the_training_split_and_others_with_another_seed() -> None:
    from benchmarks.study_lowdata import FewDigits
    from lightning_vision.datamodules import Digits

    few, others, all_of_them = FewDigits(seed=0), FewDigits(seed=1), Digits()
    for datamodule in (few, others, all_of_them):
        datamodule.setup()
    trained = {image.numpy().tobytes() for image in all_of_them.train_set.images}
    drawn, redrawn = ({image.numpy().tobytes() for image in it.train_set.images} for it in (few, others))

    assert few.class_counts["train"] == dict.fromkeys(few.class_names, 10)
    assert drawn <= trained
    assert len(drawn & redrawn) < 50
    assert few.class_counts["test"] == all_of_them.class_counts["test"]
    assert few.statistics != all_of_them.statistics


def test_a_difference_is_paired_and_held_against_two_standard_errors() -> None:
    from benchmarks.study import paired_difference

    plain = [80.0, 90.0, 70.0]

    assert paired_difference([81.0, 91.2, 71.4], plain) == ("+1.2 ± 0.1", "yes")
    assert paired_difference([83.0, 89.0, 71.0], plain) == ("+1.0 ± 1.2", "no")
    assert paired_difference([79.0, 88.8, 68.6], plain) == ("-1.2 ± 0.1", "yes")


def test_a_slowdown_is_our_time_over_the_peers_turn_by_turn() -> None:
    from benchmarks.side_by_side import Row

    row = Row.slowdown("ours", "peer", ours=[3.0, 2.0, 8.0], peer=[2.0, 2.0, 2.0], measure="wall")

    assert row.values == [1.5, 1.0, 4.0]
    assert row.amounts == (2.0, 3.0)


def test_a_speedup_is_the_peers_time_over_ours_turn_by_turn() -> None:
    from benchmarks.side_by_side import Row

    row = Row.speedup("ours", "peer", ours=[2.0, 2.0, 2.0], peer=[3.0, 2.0, 8.0], measure="cpu")

    assert row.values == [1.5, 1.0, 4.0]
    assert row.amounts == (3.0, 2.0)


@pytest.mark.parametrize(
    ("values", "bar", "verdict"),
    [
        ([1.1, 1.2, 9.0], "<= 1.20", "holds"),
        ([0.5, 1.21, 1.3], "<= 1.20", "**missed**"),
        ([1.0, 10.0, 11.0], ">= 10", "holds"),
        ([9.0, 9.9, 30.0], ">= 10", "**missed**"),
        ([9.0, 9.9, 30.0], "", ""),
    ],
)
def test_the_median_keeps_or_misses_the_bar_and_the_table_says_so(values: list[float], bar: str, verdict: str) -> None:
    from benchmarks.side_by_side import Row, table

    last = table([Row("ours", "peer", values, "wall", None, bar)]).splitlines()[-1]

    assert last.endswith(f"| wall | {bar} | {verdict} |")


def test_the_table_gives_median_range_and_number_of_turns() -> None:
    from benchmarks.side_by_side import Row, table

    ratio = Row("ours", "peer", [1.5, 28.57, 1.0], "wall", (0.0421, 0.00123))
    absolute = Row("ours", "", [0.5, 0.02, 0.03], "cpu")

    memory = Row("ours", "peer", [1.5], "memory", (2e6, 3e6))

    assert table([ratio, absolute, memory]).splitlines()[2:] == [
        "| ours | peer | 42.1 ms | 1.23 ms | 1.5x | 1x .. 28.6x (3) | wall |  |  |",
        "| ours |  |  |  | 30 ms | 20 ms .. 500 ms (3) | cpu |  |  |",
        "| ours | peer | 2 MB | 3 MB | 1.5x | 1.5x .. 1.5x (1) | memory |  |  |",
    ]


def test_sides_take_turns_and_neither_preparation_nor_warming_up_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.side_by_side import take_turns

    turns: list[str] = []
    # Each preparation takes 100 seconds, each run one.
    monkeypatch.setattr(time, "perf_counter", lambda: sum(1.0 if turn.startswith("run") else 100.0 for turn in turns))

    def side(name: str) -> Callable[[], Callable[[], Any]]:
        return lambda: turns.append(f"prepare {name}") or (lambda: turns.append(f"run {name}"))

    times = take_turns({"peer": side("peer"), "ours": side("ours")}, repetitions=2, warmup=1)
    monkeypatch.undo()

    assert turns == ["prepare peer", "run peer", "prepare ours", "run ours"] * 3
    assert {name: clocks["wall"] for name, clocks in times.items()} == {"peer": [1.0, 1.0], "ours": [1.0, 1.0]}
    assert [len(clocks["cpu"]) for clocks in times.values()] == [2, 2]


def test_figures_replace_only_what_stands_between_their_markers() -> None:
    from benchmarks.page import rewrite

    page = "before\n<!-- figures:a -->\n1x\n<!-- /figures:a -->\n<!-- figures:b -->\n2x\n<!-- /figures:b -->\nafter\n"

    assert rewrite(page, "a", "3x") == (
        "before\n<!-- figures:a -->\n\n3x\n\n<!-- /figures:a -->\n<!-- figures:b -->\n2x\n<!-- /figures:b -->\nafter\n"
    )


def test_a_page_without_room_for_the_figures_is_refused() -> None:
    from benchmarks.page import rewrite

    with pytest.raises(ValueError, match="the page has 0 blocks from <!-- figures:a --> to <!-- /figures:a -->"):
        rewrite("<!-- figures:b --><!-- /figures:b -->", "a", "3x")


def test_figures_go_to_every_page_that_asks_and_must_be_asked_for(tmp_path: Path) -> None:
    from benchmarks.page import pages_with

    pages = [tmp_path / name for name in ("speed.md", "card.md", "other.md")]
    for page, block in zip(pages, ("a", "a", "b"), strict=True):
        page.write_text(f"<!-- figures:{block} --><!-- /figures:{block} -->")

    assert pages_with("a", pages) == pages[:2]
    with pytest.raises(ValueError, match="no page has the marker <!-- figures:c -->"):
        pages_with("c", pages)
