"""What every benchmark shares: sides timed in turns, and rows of ratios."""

import gc
import operator
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

__all__ = ["Clock", "Row", "Side", "table", "take_turns", "unprepared"]

Clock = Literal["wall", "cpu"]
Measure = Clock | Literal["memory"]
# Prepares one repetition, untimed, and returns the function to time.
Side = Callable[[], Callable[[], Any]]

ORDERS = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        what: What is ours.
        against: What it is compared with, empty for an absolute figure.
        values: The figure of every repetition: a ratio, or an amount where `against` is empty.
        measure: `wall` for elapsed time, `cpu` for processor time of this process and its finished children, both in
            seconds, `memory` for bytes.
        amounts: Median of the peer and of ours, in the unit of `measure`, where both exist.
        bar: What the median must keep, such as `<= 1.20`; empty for a figure that is only informative.
    """

    what: str
    against: str
    values: list[float]
    measure: Measure
    amounts: tuple[float, float] | None = None
    bar: str = ""

    @classmethod
    def slowdown(
        cls, what: str, against: str, ours: list[float], peer: list[float], measure: Measure, bar: str = ""
    ) -> "Row":
        """Ours over the peer's, repetition by repetition; small is good."""
        ratios = [a / b for a, b in zip(ours, peer, strict=True)]
        return cls(what, against, ratios, measure, (median(peer), median(ours)), bar)

    @classmethod
    def speedup(
        cls, what: str, against: str, ours: list[float], peer: list[float], measure: Clock, bar: str = ""
    ) -> "Row":
        """Time of the peer over time of ours, repetition by repetition; large is good."""
        ratios = [b / a for a, b in zip(ours, peer, strict=True)]
        return cls(what, against, ratios, measure, (median(peer), median(ours)), bar)

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps the bar; None without one."""
        if not self.bar:
            return None
        order, limit = self.bar.split()
        return bool(ORDERS[order](median(self.values), float(limit)))


def take_turns(sides: dict[str, Side], repetitions: int, warmup: int = 1) -> dict[str, dict[Clock, list[float]]]:
    """Time the sides one after the other, again and again, so that a busy machine slows all of them alike.

    Args:
        sides: Name and preparation of each side.
        repetitions: Turns of each side that count.
        warmup: Turns of each side before those.

    Returns:
        For each side and clock the seconds of every repetition.
    """
    times: dict[str, dict[Clock, list[float]]] = {name: {"wall": [], "cpu": []} for name in sides}
    for turn in range(warmup + repetitions):
        for name, prepare in sides.items():
            run = prepare()
            gc.collect()
            cpu, wall = _cpu_seconds(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            if turn >= warmup:
                times[name]["wall"].append(wall)
                times[name]["cpu"].append(cpu)
    return times


def unprepared(run: Callable[[], Any]) -> Side:
    """A side with nothing to prepare."""
    return lambda: run


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| ours | against | peer | ours | median | min .. max (n) | clock | bar | |",
        "|---|---|--:|--:|--:|--:|---|--:|---|",
    ]
    for row in rows:
        absolute = _bytes if row.measure == "memory" else _time
        peer, ours = map(absolute, row.amounts) if row.amounts else ("", "")
        show = _ratio if row.against else absolute
        spread = f"{show(min(row.values))} .. {show(max(row.values))} ({len(row.values)})"
        verdict = {None: "", True: "holds", False: "**missed**"}[row.holds]
        cells = [row.what, row.against, peer, ours, show(median(row.values)), spread, row.measure, row.bar, verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{_short(seconds / size)} {unit}"
    return f"{_short(seconds * 1e6)} µs"


def _bytes(count: float) -> str:
    return f"{_short(count / 1e6)} MB"


def _ratio(value: float) -> str:
    return f"{value:.1f}x" if abs(value) >= 10 else f"{value:.3g}x"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
