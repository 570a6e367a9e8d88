"""Random scenes for COCO's evaluation, and what it and `CocoMAP` say of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lightning_vision.detection.coco_metric import CocoMAP

__all__ = ["NAMES", "Images", "K", "counted", "run_lengths", "scene", "summarised"]

Images = list[dict[str, Tensor]]
# As pycocotools has them in its `stats`.
NAMES = ["map", "map_50", "map_75", "map_small", "map_medium", "map_large"]
NAMES += ["mar_1", "mar_10", "mar_100", "mar_small", "mar_medium", "mar_large"]
K = 4


def scene(seed: int, images: int = 9, most: int = 14, masks: bool = False) -> tuple[Images, Images]:
    """Detections near known objects, with crowds, equal scores, empty images, empty results and every size."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.rand(size, generator=rng)

    results, targets = [], []
    for number in range(images):
        n = 0 if number % 4 == 3 else int(draw(1) * most)
        side = 8 + 2 ** (1 + 6 * draw(n, 2))
        corner = (draw(n, 2) * 150).round()
        boxes = torch.cat([corner, corner + side.round()], 1)
        labels = 1 + (draw(n) * (K - 1)).long()  # the last class has no object
        target = {
            "boxes": boxes,
            "labels": labels,
            "iscrowd": (draw(n) < 0.2).long(),
            "image_id": 7 * torch.tensor(images - number),
        }
        target["area"] = (side.prod(1) * (0.3 + 0.7 * draw(n))).round()
        d = 0 if number % 5 == 4 else 2 * n + 3
        source = (draw(d) * max(n, 1)).long()
        near = (
            boxes[source] + (8 * draw(d, 4) - 4).round() * (draw(d, 1) < 0.7)
            if n
            else torch.cat([draw(d, 2), 9 + draw(d, 2)], 1)
        )
        guess = labels[source] if n else 1 + (draw(d) * K).long()
        labels = torch.where(draw(d) < 0.8, guess, 1 + (draw(d) * K).long())
        results.append({"boxes": near, "labels": labels, "scores": (10 * draw(d)).round() / 10})
        targets.append(target)
        if masks:
            for objects in (results[-1], targets[-1]):
                objects["masks"] = (
                    torch.stack([_filled(box, 320) for box in objects["boxes"]])
                    if len(objects["boxes"])
                    else torch.zeros(0, 320, 320)
                )
                objects["masks"] = (objects["masks"] * (torch.rand(objects["masks"].shape, generator=rng) < 0.9)).byte()
    return results, targets


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """A uint8 mask `(H, W)` as COCO's files hold it."""
    coded = rle.encode(np.asfortranarray(mask.numpy()))
    return {"size": coded["size"], "counts": coded["counts"].decode()}


def summarised(results: Images, targets: Images, folder: Path, kind: str = "bbox") -> list[float]:
    """The twelve numbers of pycocotools, which reads both sides from files."""

    def rows(objects: Images) -> list[dict[str, Any]]:
        found = []
        for item, target in zip(objects, targets, strict=True):
            for place in range(len(item["labels"])):
                left, top, right, bottom = item["boxes"][place].tolist()
                row = {
                    "image_id": int(target["image_id"]),
                    "category_id": int(item["labels"][place]),
                    "id": len(found) + 1,
                }
                if kind == "bbox" or "iscrowd" in item:
                    row["bbox"] = [left, top, right - left, bottom - top]
                if "masks" in item:
                    row["segmentation"] = run_lengths(item["masks"][place])
                for name in ("scores", "iscrowd", "area"):
                    if name in item:
                        row[name.removesuffix("s")] = item[name][place].item()
                found.append(row)
        return found

    images = [{"id": int(target["image_id"]), "height": 320, "width": 320} for target in targets]
    categories = [{"id": label, "name": str(label)} for label in range(1, K + 1)]
    known = {"images": images, "annotations": rows(targets), "categories": categories, "info": {}}
    (folder / "known.json").write_text(json.dumps(known))
    (folder / "found.json").write_text(json.dumps(rows(results)))
    truth = COCO(folder / "known.json")
    evaluation = COCOeval(truth, truth.loadRes(str(folder / "found.json")), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return list(evaluation.stats)


def counted(results: Images, targets: Images, metric: CocoMAP | None = None, batch: int = 4) -> dict[str, float]:
    """What `CocoMAP` says after updates of `batch` images."""
    metric = metric or CocoMAP(K)
    for start in range(0, len(results), batch):
        metric.update(results[start : start + batch], targets[start : start + batch])
    return {name: float(value) for name, value in metric.compute().items()}


def _filled(box: Tensor, side: int) -> Tensor:
    left, top, right, bottom = box.round().int().tolist()
    mask = torch.zeros(side, side, dtype=torch.uint8)
    mask[max(top, 0) : bottom, max(left, 0) : right] = 1
    return mask
