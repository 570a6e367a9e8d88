"""Labels out of a table's cells."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_vision.catalogue import nearest

from ._table import Table, at_lines

__all__ = ["name_targets", "refuse_empty", "truth_targets"]

Rows = dict[str, list[int]]

TRUTH = {"0": 0.0, "0.0": 0.0, "1": 1.0, "1.0": 1.0}
UNLABELLED = ", or let a split_column say predict for images without labels"


def refuse_empty(table: Table, column: str, rows: Iterable[int], way_out: str = "") -> None:
    """Refuse empty cells.

    Raises:
        ValueError: names their lines and, beside mending them, the `way_out`.
    """
    cells = table.columns[column]
    if empty := [table.lines[row] for row in rows if not cells[row]]:
        raise ValueError(f"{column!r} of {table.file} is empty in {at_lines(empty)}; fill in or take out{way_out}")


def name_targets(table: Table, column: str, separator: str | None, rows: Rows) -> tuple[list[str], Tensor]:
    """Classes by name: those of the training rows, sorted, by number where all are whole numbers.

    Args:
        table: What was read.
        column: Its column of names.
        separator: What joins several in a cell, None where there is one each.
        rows: Numbers of the labelled rows of each split; rows of none keep a label of zeros.

    Returns:
        Names of the classes, and for all rows of the table int64 `(N,)`, with `separator` float32 `(N, K)` of 0 and 1.

    Raises:
        ValueError: a cell is empty, or a label is not trained.
    """
    cells, labelled = table.columns[column], [row for chosen in rows.values() for row in chosen]
    none = "" if separator is None else f", write {separator} where no label applies"
    refuse_empty(table, column, labelled, f"{none}{UNLABELLED}")
    if separator is None:
        labels = {row: [cells[row]] for row in labelled}
    else:
        labels = {row: [part for piece in cells[row].split(separator) if (part := piece.strip())] for row in labelled}
    trained = {name for row in rows["train"] for name in labels[row]}
    if not trained:
        raise ValueError(f"no row to train on in {table.file} has a label in {column!r}; give some one")
    numbered = all(re.fullmatch(r"-?\d+", name) for name in trained)
    names = sorted(trained, key=lambda name: (int(name) if numbered else 0, name))
    unknown: dict[str, list[int]] = {}
    for row in labelled:
        for name in labels[row]:
            if name not in trained:
                unknown.setdefault(name, []).append(table.lines[row])
    if unknown:
        named = ", ".join(f"{name!r} in {at_lines(lines)}" for name, lines in list(unknown.items())[:5])
        raise ValueError(
            f"{table.file} has labels that no row to train on has: {named}{nearest(next(iter(unknown)), names)}; train "
            "on such rows or take these out"
        )
    number = {name: place for place, name in enumerate(names)}
    if separator is None:
        targets = torch.zeros(len(cells), dtype=torch.int64)
        targets[labelled] = torch.tensor([number[labels[row][0]] for row in labelled])
        return names, targets
    targets = torch.zeros(len(cells), len(names))
    pairs = [(row, number[name]) for row in labelled for name in labels[row]]
    targets[[row for row, _ in pairs], [label for _, label in pairs]] = 1.0
    return names, targets


def truth_targets(table: Table, columns: list[str], rows: Rows) -> tuple[list[str], Tensor]:
    """One class a column of 0 and 1, in the order of `columns`.

    Args:
        table: What was read.
        columns: Its columns of 0 and 1.
        rows: As for `name_targets`.

    Returns:
        The columns' names, and for all rows of the table float32 `(N, K)` of 0 and 1.

    Raises:
        ValueError: a cell is empty or another number, or a class has no row to train on.
    """
    labelled = [row for chosen in rows.values() for row in chosen]
    targets = torch.zeros(len(table.lines), len(columns))
    for place, column in enumerate(columns):
        cells = table.columns[column]
        refuse_empty(table, column, labelled, UNLABELLED)
        if wrong := [row for row in labelled if cells[row] not in TRUTH]:
            where = at_lines([table.lines[row] for row in wrong])
            raise ValueError(
                f"{column!r} of {table.file} holds {cells[wrong[0]]!r} instead of 0 or 1 in {where}; "
                "several label columns hold 0 or 1 each, names go into one column"
            )
        targets[labelled, place] = torch.tensor([TRUTH[cells[row]] for row in labelled])
        if not targets[rows["train"], place].any():
            raise ValueError(
                f"{column!r} of {table.file} is 1 in no row to train on; train on such rows or leave the column out of "
                "label_columns"
            )
    return list(columns), targets
