"""What `corrupt` has measured, kept after every test, so that an interrupted run goes on where it stopped."""

import csv
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.robustness.scores import RobustnessScores, robustness_scores

__all__ = ["CLEAN", "CSV", "JSON", "MeasuredCells", "file_digest", "weights_digest"]

JSON, CSV = "robustness.json", "robustness.csv"
CLEAN = ("clean", 0)

KEYS = ("model", "data", "corruption", "severity")

Subject = tuple[str, str]
Cell = tuple[str, str, str, int]


class MeasuredCells:
    """Metrics of each (model, data, corruption, severity), in `robustness.json`.

    What the file holds of models and data that are not asked for stays in it.

    Args:
        path: The file; what it holds of the same models and data is taken over.
        made_from: For each (model, data) what its metrics depend on, plain data by name.
        overwrite: Forget what a model and data of the same name were measured with before, if it was something else.

    Raises:
        FileExistsError: the file holds metrics made from something else and `overwrite` is off.
        ValueError: the file is damaged and `overwrite` is off.
    """

    def __init__(self, path: Path, made_from: Mapping[Subject, Mapping[str, Any]], overwrite: bool) -> None:
        self.path = path
        self.made_from = {subject: dict(parts) for subject, parts in made_from.items()}
        self.cells: dict[Cell, dict[str, float]] = {}
        self.scores: list[dict[str, Any]] = []
        for subject, (parts, cells) in self._read(overwrite).items():
            wanted = self.made_from.setdefault(subject, parts)
            if wanted == parts:
                self.cells |= cells
            elif not overwrite:
                other = next(name for name in [*wanted, *parts] if wanted.get(name) != parts.get(name))
                model, data = subject
                raise FileExistsError(
                    f"{path} holds {model} on {data} as measured with {other} {parts.get(other)}, not "
                    f"{wanted.get(other)}; choose another --output or add --overwrite"
                )

    def add(self, cell: Cell, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of one test, at once."""
        self.cells[cell] = dict(metrics)
        self.write()

    def summarise(
        self, subject: Subject, metric: str, corruptions: list[str], severities: list[int]
    ) -> RobustnessScores:
        """Scores of a model on some data by one metric, also for the file."""
        values = {
            (name, severity): self.cells[*subject, name, severity][metric]
            for name in corruptions
            for severity in severities
        }
        found = robustness_scores(self.cells[*subject, *CLEAN][metric], values)
        self.scores.append({"model": subject[0], "data": subject[1], "metric": metric, **asdict(found)})
        return found

    def write(self) -> None:
        """Replace the file."""
        made_from = [{"model": model, "data": data, "parts": parts} for (model, data), parts in self.made_from.items()]
        cells = [{**dict(zip(KEYS, cell, strict=True)), "metrics": metrics} for cell, metrics in self.cells.items()]
        part = self.path.with_name(f".{self.path.name}.part")
        content = {"made_from": made_from, "scores": self.scores, "cells": cells}
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)

    def write_table(self, path: Path) -> None:
        """All metrics as CSV, a line a test."""
        names = list(dict.fromkeys(name for metrics in self.cells.values() for name in metrics))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*KEYS, *names])
            writer.writerows([*cell, *(metrics.get(name) for name in names)] for cell, metrics in self.cells.items())

    def _read(self, overwrite: bool) -> dict[Subject, tuple[dict[str, Any], dict[Cell, dict[str, float]]]]:
        """What the file holds, if there is one: parts and cells of each (model, data)."""
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            found: dict[Subject, tuple[dict[str, Any], dict[Cell, dict[str, float]]]] = {
                (entry["model"], entry["data"]): (dict(entry["parts"]), {}) for entry in content["made_from"]
            }
            for entry in content["cells"]:
                model, data, corruption, severity = (entry[key] for key in KEYS)
                found[model, data][1][model, data, corruption, severity] = dict(entry["metrics"])
        except (ValueError, KeyError, TypeError) as error:
            if overwrite:
                return {}
            raise ValueError(f"{self.path} is damaged; choose another --output or add --overwrite") from error
        return found


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of weights."""
    found = hashlib.sha256()
    for name, value in state.items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
