"""The files that `predict` writes of a detector: readable records, COCO's results, and a sheet."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule
from PIL import Image

from lightning_vision.callbacks.evaluation._boxes import box_sheet
from lightning_vision.commands._prediction_writer import JSONL, PredictionFiles, merged
from lightning_vision.detection.records import coco_results, detection_records

__all__ = ["DetectionFiles", "drawn_objects"]

# Detections below are not drawn: the hundred that average precision wants of an image would hide it.
SHOWN = 0.3


class DetectionFiles(PredictionFiles):
    """What objects an image shows, and where: JSON Lines for readers, COCO's result JSON for its evaluation."""

    names = MappingProxyType({"jsonl": JSONL, "json": "predictions.json"})

    def count(self, module: LightningModule, outputs: Any) -> int:
        if not isinstance(outputs, Mapping) or "results" not in outputs:
            raise ValueError(f"{type(module).__name__}.predict_step must return a mapping with `results`")
        return len(outputs["results"])

    def records(
        self,
        module: Any,
        datamodule: Any,
        outputs: Mapping[str, Any],
        index: list[int],
        paths: Sequence[str | None],
    ) -> list[dict[str, Any]]:
        targets = outputs.get("target", [None] * len(index))
        records = detection_records(outputs["results"], targets, index, module.class_names, module.category_ids, paths)
        if getattr(datamodule, "predict_set", None) is not getattr(datamodule, "test_set", None):
            # Images to predict that are not those of the test come without objects, which is not to have none.
            records = [record | {"true": None} for record in records]
        return records

    def write(self, parts: Sequence[Path], folder: Path) -> None:
        with (
            merged(parts) as records,
            (folder / JSONL).open("w", encoding="utf-8") as lines,
            (folder / self.names["json"]).open("w", encoding="utf-8") as results,
        ):
            before = "[\n"
            for record in records:
                for result in coco_results(record):
                    results.write(before + json.dumps(result))
                    before = ",\n"
                for row in record["objects"]:
                    row.pop("segmentation", None)
                lines.write(json.dumps(record) + "\n")
            results.write("[]\n" if before == "[\n" else "\n]\n")

    def draw(self, datamodule: Any, jsonl: Path, count: int, png: Path) -> None:
        """Draw images spread evenly over the file as the detector saw them, with found and, where known, true boxes."""
        with jsonl.open(encoding="utf-8") as lines:
            total = sum(1 for _ in lines)
        wanted = {number * total // count for number in range(count)}
        with jsonl.open(encoding="utf-8") as lines:
            records = [json.loads(line) for number, line in enumerate(lines) if number in wanted]
        batch = datamodule.predict_set.fetch(torch.tensor([record["index"] for record in records]), 0)
        images = batch.image.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
        placements = batch.target.placement.tolist()
        found, true = [], []
        for record, placement in zip(records, placements, strict=True):
            shown = drawn_objects(record["objects"])
            found.append([(_placed(row["box"], placement), f"{row['class_name']} {row['score']:.2f}") for row in shown])
            known = record["true"]
            true.append(
                None if known is None else [(_placed(row["box"], placement), row["class_name"]) for row in known]
            )
        Image.fromarray(box_sheet(list(images), true, found)).save(png)


def drawn_objects(objects: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a record's objects, best first, that a sheet shows: the best last, so that it lies over the others."""
    return [row for row in reversed(objects) if row["score"] >= SHOWN]


def _placed(box: Sequence[float], placement: Sequence[float]) -> list[float]:
    """A box in the pixels of the batch."""
    across, down, right, below = placement
    corners = zip(box, (across, down, across, down), (right, below, right, below), strict=True)
    return [corner * scale + shift for corner, scale, shift in corners]
