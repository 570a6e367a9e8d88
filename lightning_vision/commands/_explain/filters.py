"""`explain --mode filters`: how many of a network's convolution kernels are spent or alike, layer by layer."""

from pathlib import Path
from typing import Any

from lightning_vision.commands._explain.pictures import write_table
from lightning_vision.commands._explain.subject import Subject
from lightning_vision.commands._report import print_table
from lightning_vision.explain.filter_report import filter_report

__all__ = ["FILES", "write"]

FILES = ("filters.csv",)


def write(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write and print the report on kernels of 3x3.

    Returns:
        `rows` of the report.

    Raises:
        ValueError: the network has no such kernels.
    """
    rows = filter_report(subject.module)
    columns = list(rows[0])
    write_table(folder / FILES[0], columns, [list(row.values()) for row in rows])
    shown = {"layer": "".join(f"{name:>15}" for name in columns[1:])}
    for row in rows:
        cells = list(row.values())[1:]
        shown[str(row["layer"])] = "".join(f"{it:15.3f}" if isinstance(it, float) else f"{it:>15}" for it in cells)
    print_table("kernels of 3x3", shown)
    return {"rows": rows}
