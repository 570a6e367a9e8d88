"""What the modes of `explain` share that make images: which units they are made for, and the sheet of them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lightning_vision.callbacks.explain.sheet import contact_sheet
from lightning_vision.commands._explain.subject import Subject

__all__ = ["Cells", "chosen_units", "normalisation", "write_sheet", "write_table"]

Cells = list[tuple[list[NDArray[np.uint8]], str]]
# Of so many classes all are drawn if none was chosen.
MANY = 100


def chosen_units(
    subject: Subject, class_index: Any, layer: str | None, channel: list[int] | int | None
) -> tuple[list[int], list[str]]:
    """Classes, or channels of a layer, by number, and what they are called.

    Raises:
        ValueError: there is no such class, a layer is given without channels or channels without a layer, both classes
            and a layer are given, or nothing is chosen among very many classes.
    """
    if (layer is None) != (channel is None):
        given, missing = ("layer", "channel") if channel is None else ("channel", "layer")
        raise ValueError(f"--{given} goes with --{missing}: which channels of which layer")
    if layer is not None and channel is not None:
        if class_index is not None:
            raise ValueError("--class_index does not go with --layer: images are made for classes or for channels")
        numbers = [channel] if isinstance(channel, int) else list(channel)
        return numbers, [f"{layer} {number}" for number in numbers]
    if class_index is None and subject.num_classes > MANY:
        raise ValueError(f"the checkpoint has {subject.num_classes} classes; choose some by --class_index")
    numbers = subject.class_numbers(class_index)
    return numbers, [subject.names[number] for number in numbers]


def normalisation(subject: Subject) -> dict[str, Any]:
    """Arguments of functions that make images as the subject takes them, and their seed."""
    return {"mean": subject.told["mean"], "std": subject.told["std"], "seed": subject.seed}


def write_sheet(path: Path, cells: Cells, columns: int, titles: Sequence[str] = ()) -> None:
    """Draw samples, each some pictures and a text, so many in a row, under titles of a sample's pictures."""
    Image.fromarray(contact_sheet(cells, columns, titles)).save(path)


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file; file names may hold bytes that are not UTF-8."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)
