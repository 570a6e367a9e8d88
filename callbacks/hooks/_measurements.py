"""The file in which every number of a probe stands beside how it was measured."""

import csv
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path

__all__ = ["Measurement", "keep_measurements"]


@dataclass(frozen=True)
class Measurement:
    """A line of the file.

    Args:
        protocol: Name of the way to measure.
        settings: All its settings, as JSON with sorted keys.
        epoch: Epochs that were over or under way.
        step: Optimizer steps that were over.
        name: What was measured.
        value: Its value, which the file keeps to the last bit.
    """

    protocol: str
    settings: str
    epoch: int
    step: int
    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} = {self.value:.4f} by {self.protocol}, after step {self.step} of epoch {self.epoch}"

    def line(self) -> tuple[str, ...]:
        return tuple(str(it) for it in astuple(self))


def keep_measurements(file: Path, found: list[Measurement]) -> None:
    """Append lines; a line of the same measurement at the same step, as a resumed run writes again, is replaced.

    The file is exchanged as a whole, so that a crash leaves the old one.
    """
    header = tuple(it.name for it in fields(Measurement))
    lines: Mapping[tuple[str, ...], tuple[str, ...]] = {}
    if file.exists():
        with file.open(newline="", encoding="utf-8") as opened:
            lines = {tuple(row[:-1]): tuple(row) for row in list(csv.reader(opened))[1:] if len(row) == len(header)}
    new = {it.line()[:-1]: it.line() for it in found}
    kept = [line for key, line in lines.items() if key not in new]
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".csv.part")
    with part.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows([header, *kept, *new.values()])
    os.replace(part, file)
