"""What the suite prints at the end of a run: its conditions, what each callback refused and what each cost.

A plugin of the whole run, because under xdist only the controlling process prints, and it collects no tests.
"""

from collections import defaultdict
from typing import Any

import pytest

__all__ = ["Tables"]


class Tables:
    """Gathers what the conformance tests recorded as `record_property(table, line)`."""

    def __init__(self) -> None:
        self.lines: defaultdict[str, dict[str, None]] = defaultdict(dict)
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" or "tests/conformance/" not in report.nodeid:
            return
        spent, who = 0.0, "the suite itself"
        for key, value in report.user_properties:
            if key == "cpu_seconds":
                spent = value
            elif key == "callback":
                who = value
            elif isinstance(value, str):
                self.lines[key][value] = None
        self.seconds[who] += spent

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for title, lines in self.lines.items():
            terminalreporter.section(f"conformance: {title}")
            for line in lines:
                terminalreporter.line(line)
        if self.seconds:
            terminalreporter.section("conformance: CPU seconds of each callback")
            for who, seconds in sorted(self.seconds.items()):
                terminalreporter.line(f"{seconds:8.1f}  {who}")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tables(), "conformance_tables")
