"""The files that `predict` writes of a classifier: their records, their columns, and a sheet."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch import LightningModule

from lightning_vision.classification.records import prediction_records
from lightning_vision.commands._prediction_writer import JSONL, PredictionFiles, merged

__all__ = ["LabelFiles", "captions", "merge"]

CSV = "predictions.csv"
SCALARS = ("index", "path", "label", "class_name", "target", "target_name")
# Joins the labels of one image in a cell of the CSV; alone it says that there are none, as `CSVImages` reads it.
SEPARATOR = "|"


class LabelFiles(PredictionFiles):
    """What an image shows: JSON Lines and a table that say the same.

    Args:
        top_k: Classes to list for each image.
    """

    names = MappingProxyType({"jsonl": JSONL, "csv": CSV})

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._class_names: Sequence[str] = []

    def count(self, module: LightningModule, outputs: Any) -> int:
        if not isinstance(outputs, Mapping) or "probabilities" not in outputs:
            raise ValueError(f"{type(module).__name__}.predict_step must return a mapping with `probabilities`")
        return len(outputs["probabilities"])

    def records(
        self,
        module: LightningModule,
        datamodule: Any,
        outputs: Mapping[str, Any],
        index: list[int],
        paths: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        probabilities = outputs["probabilities"]
        self._class_names = getattr(module, "class_names", [str(label) for label in range(probabilities.shape[1])])
        thresholds: Any = getattr(module, "thresholds", None)
        records = prediction_records(probabilities, index, self._class_names, paths, self.top_k, thresholds)
        targets = outputs["target"].tolist() if "target" in outputs else [None] * len(index)
        names = getattr(datamodule, "class_names", self._class_names)
        truth = _truth if thresholds is None else _truths
        return [record | truth(target, names) for record, target in zip(records, targets, strict=True)]

    def write(self, parts: Sequence[Path], folder: Path) -> None:
        merge(parts, folder, self._class_names)

    def draw(self, datamodule: Any, jsonl: Path, count: int, png: Path) -> None:
        positions, titles = captions(jsonl, count)
        datamodule.plot("predict", path=str(png), positions=positions, titles=titles)


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
    # File names may hold bytes that are not UTF-8.
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with (
        merged(parts) as records,
        (folder / JSONL).open("w", encoding="utf-8") as lines,
        (folder / CSV).open("w", **how) as rows,
    ):
        table = csv.writer(rows, lineterminator="\n")
        for number, record in enumerate(records):
            if not number:
                table.writerow(_columns(class_names, record))
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


def _truth(target: Any, names: Sequence[str]) -> dict[str, Any]:
    """A label and its name; -1 is a label that nobody knows, and one that the data does not name has no name."""
    name = names[target] if isinstance(target, int) and 0 <= target < len(names) else None
    return {"target": None if target == -1 else target, "target_name": name}


def _truths(target: Any, names: Sequence[str]) -> dict[str, Any]:
    """Several labels an image as 0 and 1, and the names of those that are there."""
    if not isinstance(target, list):
        known = _truth(target, names)
        return known | {"target_name": None if known["target_name"] is None else [known["target_name"]]}
    there = [name for name, label in zip(names, target, strict=True) if label > 0.5]
    return {"target": [int(label > 0.5) for label in target], "target_name": there}
