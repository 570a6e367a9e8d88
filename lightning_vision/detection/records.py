"""Detections as plain records, one an image, for JSON Lines, COCO's results and Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .placement import original_boxes, original_rles

__all__ = ["coco_results", "detection_records"]

Found = Mapping[str, Tensor]


def detection_records(
    results: Sequence[Found],
    targets: Sequence[Found | None],
    index: Sequence[int],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    paths: Sequence[str | Path | None],
) -> list[dict[str, Any]]:
    """Turn the detections of a batch into plain records, one an image, in the pixels of the original images.

    Args:
        results: Of each image `boxes` `(D, 4)` in the batch's pixels, `labels` in 1..K, `scores` and perhaps `masks`.
        targets: Of each image what is known of it: `image_id`, `placement`, `size`, `boxes` and `labels`; None, or
            without one of these, where nobody knows.
        index: Position of each image in its dataset, B numbers.
        class_names: K names, of label 1 first.
        category_ids: What the source calls the classes, K numbers.
        paths: File of each image, or None where it came from no file.

    Returns:
        `{"path": str or None, "index": int, "image_id": int, "height": int or None, "width": int or None, "objects":
        [{"label", "category_id", "class_name", "score", "box"}, ... best first], "true": [{"label", "category_id",
        "class_name", "box"}, ...] or None}`; `box` is left, top, right, bottom. With masks an object also has
        `segmentation`, COCO's compressed run lengths.
    """
    records = []
    for found, target, position, path in zip(results, targets, index, paths, strict=True):
        known = target or {}
        size = (int(known["size"][0]), int(known["size"][1])) if "size" in known else None
        placement = known["placement"].cpu().numpy() if "placement" in known else None
        objects = _objects(found, placement, size, class_names, category_ids)
        for row, score in zip(objects, found["scores"].tolist(), strict=True):
            row["score"] = score
        if "masks" in found:
            shape = size or (found["masks"].shape[-2], found["masks"].shape[-1])
            for row, counts in zip(objects, original_rles(found["masks"], placement, shape), strict=True):
                row["segmentation"] = {"size": list(shape), "counts": counts.decode()}
        order = np.argsort(-found["scores"].float().cpu().numpy(), kind="stable")
        records.append(
            {
                "path": None if path is None else str(path),
                "index": int(position),
                "image_id": int(known["image_id"]) if "image_id" in known else int(position),
                "height": None if size is None else size[0],
                "width": None if size is None else size[1],
                "objects": [objects[place] for place in order.tolist()],
                "true": _objects(known, placement, None, class_names, category_ids) if "boxes" in known else None,
            }
        )
    return records


def coco_results(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The objects of a record as COCO's result files hold them, `bbox` being left, top, width and height."""
    return [
        {
            "image_id": record["image_id"],
            "category_id": row["category_id"],
            "bbox": [row["box"][0], row["box"][1], row["box"][2] - row["box"][0], row["box"][3] - row["box"][1]],
            "score": row["score"],
        }
        | ({"segmentation": row["segmentation"]} if "segmentation" in row else {})
        for row in record["objects"]
    ]


def _objects(
    items: Found,
    placement: np.ndarray | None,
    size: tuple[int, int] | None,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[dict[str, Any]]:
    boxes = original_boxes(items["boxes"].reshape(-1, 4).float().cpu().numpy(), placement, size)
    return [
        {
            "label": label,
            "category_id": category_ids[label - 1],
            "class_name": class_names[label - 1],
            "box": box,
        }
        for label, box in zip(items["labels"].tolist(), boxes.tolist(), strict=True)
    ]
