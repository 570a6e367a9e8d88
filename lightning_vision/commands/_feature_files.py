"""The files that `predict` writes of a learner without labels: features, whose they are, and a sheet of neighbours."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule

from lightning_vision.commands._prediction_writer import JSONL, PredictionFiles, merged

__all__ = ["FeatureFiles"]

NEIGHBOURS = 5


class FeatureFiles(PredictionFiles):
    """What an image is like: an array `(N, D)`, and JSON Lines that tell whose its rows are."""

    names = MappingProxyType({"jsonl": JSONL, "npy": "features.npy"})

    def count(self, module: LightningModule, outputs: Any) -> int:
        if not isinstance(outputs, Mapping) or "features" not in outputs:
            raise ValueError(f"{type(module).__name__}.predict_step must return a mapping with `features`")
        return len(outputs["features"])

    def records(
        self,
        module: LightningModule,
        datamodule: Any,
        outputs: Mapping[str, Any],
        index: list[int],
        paths: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        targets = outputs["target"].tolist() if "target" in outputs else [None] * len(index)
        rows = outputs["features"].float().tolist()
        return [
            {"index": number, "path": path, "target": target, "features": row}
            for number, path, target, row in zip(index, paths, targets, rows, strict=True)
        ]

    def write(self, parts: Sequence[Path], folder: Path) -> None:
        with merged(parts) as records:
            total, width = 0, 0
            for record in records:
                total, width = total + 1, len(record["features"])
        array = np.lib.format.open_memmap(folder / self.names["npy"], "w+", np.float32, (total, width))
        with merged(parts) as records, (folder / JSONL).open("w", encoding="utf-8") as lines:
            for row, record in enumerate(records):
                array[row] = record.pop("features")
                lines.write(json.dumps({**record, "row": row}) + "\n")
        array.flush()

    def draw(self, datamodule: Any, jsonl: Path, count: int, png: Path) -> None:
        """Draw images spread evenly over the file, each in a row with those whose features are nearest, by cosine."""
        index = [json.loads(line)["index"] for line in jsonl.read_text(encoding="utf-8").splitlines()]
        rows = np.load(jsonl.with_name(self.names["npy"]))
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        positions, titles = [], []
        groups = max(1, min(count, len(index)) // (NEIGHBOURS + 1))
        for query in (number * len(index) // groups for number in range(groups)):
            alike = rows @ rows[query]
            alike[query] = -np.inf
            nearest = np.argsort(-alike, kind="stable")[: min(NEIGHBOURS, len(index) - 1)]
            positions += [index[query], *(index[row] for row in nearest)]
            titles += [f"image {index[query]}", *(f"{alike[row]:.2f}" for row in nearest)]
        row = len(positions) // groups
        datamodule.plot("predict", path=str(png), positions=positions, titles=titles, columns=row)
