"""The files that `predict` writes: their columns, and how the parts of several ranks become one."""

import csv
import heapq
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

__all__ = ["CSV", "JSONL", "PNG", "captions", "merge"]

JSONL, CSV, PNG = "predictions.jsonl", "predictions.csv", "predictions.png"
SCALARS = ("index", "path", "label", "class_name", "target", "target_name")
# Joins the labels of one image in a cell of the CSV; alone it says that there are none, as `CSVImages` reads it.
SEPARATOR = "|"


def merge(parts: Sequence[Path], folder: Path, class_names: Sequence[str]) -> None:
    """Write the records of all parts in the order of their index, as JSON Lines and as CSV; one record a part is held.

    Args:
        parts: JSON Lines, the indices of each ascending.
        folder: Gets both files.
        class_names: K names, for the columns of the CSV.

    Raises:
        FileNotFoundError: a part is missing, so `folder` is not the same for all ranks.
        ValueError: two parts hold the same index.
    """
    if missing := [part for part in parts if not part.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing; set --output to a folder that all ranks see")
    with ExitStack() as stack:
        records = heapq.merge(
            *(map(json.loads, stack.enter_context(part.open(encoding="utf-8"))) for part in parts),
            key=lambda record: record["index"],
        )
        # File names may hold bytes that are not UTF-8.
        lines = stack.enter_context((folder / JSONL).open("w", encoding="utf-8"))
        rows = stack.enter_context((folder / CSV).open("w", encoding="utf-8", errors="surrogateescape", newline=""))
        table = csv.writer(rows, lineterminator="\n")
        last = None
        for record in records:
            if last is None:
                table.writerow(_columns(class_names, record))
            elif record["index"] == last:
                raise ValueError(f"sample {last} was predicted by two processes; let the datamodule shard by rank")
            last = record["index"]
            lines.write(json.dumps(record) + "\n")
            table.writerow(_cells(record))


def captions(jsonl: Path, count: int) -> tuple[list[int], list[str]]:
    """Positions and titles of `count` images for a sheet: missed ones first, the others spread evenly over the file."""
    missed, right = [], []
    with jsonl.open(encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            title = f"{record['class_name']} {record['top_k'][0]['probability']:.0%}"
            said, true, name = record["label"], record["target"], record["target_name"]
            if "labels" in record:
                title = ", ".join(record["labels"]) or "none"
                said, true, name = record["labels"], name, ", ".join(name or []) or "none"
            if record["target"] is None or said == true:
                right.append((record["index"], title))
            else:
                missed.append((record["index"], f"{title}, is {name}"))
    shown = missed[:count]
    room = min(count - len(shown), len(right))
    shown += [right[number * len(right) // room] for number in range(room)]
    return [index for index, _ in shown], [title for _, title in shown]


def _columns(class_names: Sequence[str], record: dict[str, Any]) -> list[str]:
    places = range(1, len(record["top_k"]) + 1)
    ranked = [f"top_{place}{part}" for place in places for part in ("", "_name", "_probability")]
    labels = ["labels"] if "labels" in record else []
    return [*SCALARS, *labels, *(f"probability_{name}" for name in class_names), *ranked]


def _cells(record: dict[str, Any]) -> Iterator[Any]:
    yield from (record[name] for name in SCALARS[:-1])
    yield _cell(record["target_name"])
    if "labels" in record:
        yield _cell(record["labels"])
    yield from record["probabilities"]
    for entry in record["top_k"]:
        yield from (entry["label"], entry["class_name"], entry["probability"])


def _cell(names: str | list[str] | None) -> str | None:
    return SEPARATOR.join(names) or SEPARATOR if isinstance(names, list) else names
