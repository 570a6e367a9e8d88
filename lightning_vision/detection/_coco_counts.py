"""COCO's numbers from packed arrays, by faster_coco_eval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from faster_coco_eval.core import mask as rle

__all__ = ["Objects", "evaluate", "scalar_names"]

AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Objects:
    """Objects of all images, one row each, those of an image in their order.

    Args:
        image: Number of the image, int `(M,)`.
        label: 1..K, int `(M,)`.
        boxes: Left, top, width, height, pixels, float64 `(M, 4)`.
        value: Scores of detections; of known objects whether they are a crowd, `(M,)`.
        area: Square pixels, float64 `(M,)`.
        masks: Compressed run lengths and size of each, where masks are judged.
    """

    image: np.ndarray
    label: np.ndarray
    boxes: np.ndarray
    value: np.ndarray
    area: np.ndarray
    masks: Sequence[dict[str, Any]] | None = None


class _Evaluator(COCOeval_faster):
    """With overlaps of boxes from lists of its own, for asking its data set for each pair takes thrice as long."""

    def __init__(self, known: COCO, found: COCO, boxes: bool) -> None:
        super().__init__(known, found, "bbox" if boxes else "segm", print_function=lambda *_: None)
        self.pairs: dict[str, dict[tuple[int, int], list[dict[str, Any]]]] = {"known": {}, "found": {}}
        for name, rows in (("known", known), ("found", found)) if boxes else ():
            for row in rows.dataset["annotations"]:
                self.pairs[name].setdefault((row["image_id"], row["category_id"]), []).append(row)

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802  # the library's own names
        if self.params.compute_rle:
            return super().computeIoU(imgId, catId)
        known = self.pairs["known"][imgId, catId]
        found = sorted(self.pairs["found"][imgId, catId], key=lambda row: -row["score"])[: self.params.maxDets[-1]]
        return rle.iou(
            [row["bbox"] for row in found], [row["bbox"] for row in known], [row["iscrowd"] for row in known]
        )


def scalar_names(detections: Sequence[int]) -> list[str]:
    """Names of what `evaluate` gives for all classes together, in its order."""
    sizes = AREAS[1:]
    precision = ["map", "map_50", "map_75", *(f"map_{size}" for size in sizes)]
    return [*precision, *(f"mar_{most}" for most in detections), *(f"mar_{size}" for size in sizes)]


def evaluate(
    known: Objects, found: Objects, images: int, num_classes: int, detections: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """What `scalar_names` names, and of each class map, map_50, map_75 and recall `(K, 4)`; -1 is undefined.

    Args:
        known: The true objects.
        found: Detections, of equal scores the first counts as the better one.
        images: How many; their numbers are 0..images - 1.
        num_classes: K.
        detections: How many of the best of an image and class count, ascending; precision takes the last.
    """
    truth, results = _coco(known, images, num_classes, "iscrowd"), _coco(found, images, num_classes, "score")
    evaluator = _Evaluator(truth, results, boxes=known.masks is None)
    evaluator.params.maxDets = list(detections)
    evaluator.evaluate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]  # (T, R, K, A, M) and (T, K, A, M)
    best = precision[..., -1]
    half, three_quarters = 0, 5  # places of 0.5 and 0.75 among 0.5, 0.55, ..., 0.95
    areas = range(1, len(AREAS))
    scalars = [
        _mean(best[..., 0]),
        _mean(best[half, ..., 0]),
        _mean(best[three_quarters, ..., 0]),
        *(_mean(best[..., area]) for area in areas),
        *(_mean(recall[..., 0, most]) for most in range(len(detections))),
        *(_mean(recall[..., area, -1]) for area in areas),
    ]
    classes = [
        [
            _mean(best[:, :, label, 0]),
            _mean(best[half, :, label, 0]),
            _mean(best[three_quarters, :, label, 0]),
            _mean(recall[:, label, 0, -1]),
        ]
        for label in range(num_classes)
    ]
    return np.array(scalars), np.array(classes).reshape(num_classes, 4)


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def _coco(objects: Objects, images: int, num_classes: int, value: str) -> COCO:
    """What a COCO file would hold, without the file; numbers of objects begin at 1, for 0 means unmatched."""
    columns = (objects.image, objects.label, objects.boxes, objects.area, objects.value)
    rows: list[dict[str, Any]] = [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": 0, value: extra}
        for number, (image, label, box, area, extra) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True), 1
        )
    ]
    sizes: dict[int, tuple[int, int]] = {}
    for row, mask in zip(rows, objects.masks or (), strict=objects.masks is not None):
        row["segmentation"] = mask
        sizes[row["image_id"]] = mask["size"]
    whole = [
        {"id": number, "height": height, "width": width}
        for number in range(images)
        for height, width in [sizes.get(number, (0, 0))]
    ]
    coco = COCO(print_function=lambda *_: None)
    coco.dataset = {"images": whole, "annotations": rows, "categories": [{"id": k + 1} for k in range(num_classes)]}
    coco.createIndex()
    return coco
