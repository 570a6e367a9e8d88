"""Time budgets of the test folders: CPU seconds, on a machine as fast as the one that measured the table."""

import os
import statistics
import time
import tomllib
from collections import defaultdict
from collections.abc import Generator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from support.two_ranks import PAIR, TwoRanks

# Tests between two looks at how fast the machine is.
STRIDE = 100
_tests = count()


def work() -> float:
    """CPU seconds of a fixed piece of work, half Python and half torch, as tests are."""
    begin = time.process_time()
    sum({str(number): number for number in range(40_000)}.values())
    images, weight = torch.ones(8, 16, 32, 32), torch.full((16, 16, 3, 3), 0.01, requires_grad=True)
    for _ in range(3):
        torch.nn.functional.conv2d(images, weight, padding=1).relu().mean().backward()
    return time.process_time() - begin


def _cpu_seconds(pair: TwoRanks) -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + pair.cpu_seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if next(_tests) % STRIDE == 0:
        # Twice, for a first time pays for what torch loads.
        item.user_properties.append(("work", min(work(), work())))
    pair = item.config.stash[PAIR]
    begin = _cpu_seconds(pair)
    try:
        return (yield)
    finally:
        if item.get_closest_marker("slow") is None:
            item.user_properties.append(("cpu_seconds", _cpu_seconds(pair) - begin))


class Budgets:
    """Adds up what the tests of each folder took, on the process that controls the run, and fails one over budget.

    A slower machine, or a busy one, takes more CPU seconds for the same work: budgets grow as `work` does beyond
    `reference`, its CPU seconds where the table was measured.
    """

    def __init__(self, table: dict[str, float], reference: float) -> None:
        self.table = table
        self.reference = reference
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.works: list[float] = []

    def folder_of(self, node: str) -> str:
        """The longest entry of the table that `node` lies under, or the node's own folder when none fits."""
        path = Path(node.partition("::")[0])
        return next((str(parent) for parent in path.parents if str(parent) in self.table), str(path.parent))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            told = dict(report.user_properties)
            self.spent[self.folder_of(report.nodeid)] += told.get("cpu_seconds", 0.0)
            self.works += [told["work"]] if "work" in told else []

    def slowness(self) -> float:
        """How many times as long as the reference this machine takes; 1 for a faster one."""
        return max(1.0, statistics.median(self.works) / self.reference) if self.works else 1.0

    def budget(self, folder: str) -> float:
        return self.table.get(folder, 0.0) * self.slowness()

    def exceeded(self) -> list[str]:
        return sorted(folder for folder, seconds in self.spent.items() if seconds > self.budget(folder))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.exceeded() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    # The last that a run prints, where whoever reads only its end looks for the reason of a failure.
    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("CPU seconds of each test folder")
        for folder, seconds in sorted(self.spent.items()):
            verdict = "  OVER BUDGET" if folder in self.exceeded() else ""
            terminalreporter.line(f"{seconds:8.1f} of {self.budget(folder):5.0f}  {folder}{verdict}")
        terminalreporter.line(f"budgets times {self.slowness():.2f}, for so much slower is this machine just now")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    file = session.config.rootpath / "tests" / "budgets.toml"
    if not hasattr(session.config, "workerinput") and file.exists():
        table = tomllib.loads(file.read_text())
        session.config.pluginmanager.register(Budgets(table["seconds"], table["reference"]), "budgets")
