"""Reading a table of images: its delimiter, its columns and the line that each row stands on."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_vision.catalogue import nearest

__all__ = ["Table", "at_lines", "read_table"]

DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Table:
    """The columns that were asked for.

    Args:
        file: Where they were read.
        lines: Number of the line on which each row begins; the header's is 1.
        columns: The cells of each column, without the spaces around them.
    """

    file: Path
    lines: list[int]
    columns: dict[str, list[str]]


def read_table(file: Path, columns: dict[str, str], delimiter: str | None = None) -> Table:
    """Read columns of a UTF-8 file (with or without its mark) whose first line names them.

    Args:
        file: With quoted cells or without, line ends of any system.
        columns: Which are needed; the value is the argument that named the column, for the message.
        delimiter: What stands between cells; None takes the one of `, ; tab |` that the header is split by.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8 text or no table, is empty or has no rows; a column is missing or there twice; a row
            has more or fewer cells than the header.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; csv must name a table of images")
    lines: list[int] = []
    rows: list[list[str]] = []
    begun = 1
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            first = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=delimiter or _delimiter(first, columns), strict=True)
            for row in reader:
                if row and any(row):
                    lines.append(begun)
                    rows.append(row)
                begun = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} after line {begun}); save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{file} cannot be read as a table from line {begun} on: {error}; mend that line") from error
    if len(rows) < 2:
        raise ValueError(f"{file} holds no rows; its first line must name the columns, one row an image must follow")
    header = [name.strip() for name in rows[0]]
    _check_header(file, header, columns)
    if odd := [line for line, row in zip(lines, rows, strict=True) if len(row) != len(header)]:
        raise ValueError(
            f"{file} has {len(header)} columns but another number of cells in {at_lines(odd)}; quote cells that hold "
            "the delimiter, or pass delimiter"
        )
    places = {name: header.index(name) for name in columns}
    return Table(file, lines[1:], {name: [row[place].strip() for row in rows[1:]] for name, place in places.items()})


def at_lines(lines: Sequence[int], most: int = 5) -> str:
    """`line 7`, or `lines 3, 7 and 9`, or the first `most` of them and how many more."""
    if len(lines) == 1:
        return f"line {lines[0]}"
    named, more = [str(line) for line in lines[:most]], len(lines) - most
    last = f"{more} more" if more > 0 else named.pop()
    return f"lines {', '.join(named)} and {last}"


def _delimiter(header: str, columns: dict[str, str]) -> str:
    """The one that finds most of `columns` in the header, and of equals the one that finds most cells."""

    def found(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=delimiter), [])]
        return len(columns.keys() & {*cells}), len(cells)

    return max(DELIMITERS, key=found)


def _check_header(file: Path, header: list[str], columns: dict[str, str]) -> None:
    for name, argument in columns.items():
        if name not in header:
            raise ValueError(
                f"{file} has no column {name!r}{nearest(name, header)}; its first line names {', '.join(header)}: pass "
                f"{argument}"
            )
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"{file} has two columns called {twice[0]!r}; rename one of them")
