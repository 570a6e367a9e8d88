"""Small tables, a mapping for each row, on the screen and as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["table_text", "write_table"]


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in aligned columns; a name that a row has not is left empty there, floats have four digits.

    >>> print(table_text([{"net": "small", "acc": 0.5}, {"net": "large"}]))
    net       acc
    small  0.5000
    large
    """
    names = _names(rows)
    cells = [names, *([_short(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[place]) for line in cells) for place in range(len(names))]
    numbers = [all(isinstance(row.get(name), (int, float, type(None))) for row in rows) for name in names]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def write_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the rows as CSV, into a folder that is made if it is missing; floats have six digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, _names(rows), restval="")
        writer.writeheader()
        writer.writerows(
            {name: f"{it:.6g}" if isinstance(it, float) else it for name, it in row.items()} for row in rows
        )


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
