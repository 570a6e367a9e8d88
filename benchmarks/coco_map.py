"""What COCO's mean average precision costs: ours beside torchmetrics on two evaluators, with the updates."""

from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from typing import Literal

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from lightning_vision.detection.coco_metric import CocoMAP

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

Images = list[dict[str, Tensor]]


def rows(quick: bool) -> list[Row]:
    """All of 80 classes together, and each of 20.

    Args:
        quick: One repetition on 8 images.
    """
    many, few = scenes(8 if quick else 2000, 50, 80), scenes(8 if quick else 200, 50, 20)
    cocos: Literal["pycocotools"] = "pycocotools"
    fast: Literal["faster_coco_eval"] = "faster_coco_eval"
    sides: dict[str, Side] = {
        "ours": lambda: judging(CocoMAP(80), *many),
        "fast": lambda: judging(MeanAveragePrecision(backend=fast), *many),
        "classes, ours": lambda: judging(CocoMAP(20), *few),
        "classes, fast": lambda: judging(MeanAveragePrecision(backend=fast, class_metrics=True), *few),
        "updates": lambda: updating(CocoMAP(80), *many),
    }
    once, twice = ((1, 0), (1, 0)) if quick else ((2, 0), (3, 1))
    with redirect_stdout(StringIO()):
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *twice).items()}
        # Half a minute a turn, for which two turns beside ours must do.
        slow: dict[str, Side] = {
            "ours": sides["ours"],
            "theirs": lambda: judging(MeanAveragePrecision(backend=cocos), *many),
        }
        long = {name: clocks["cpu"] for name, clocks in take_turns(slow, *once).items()}
    what = "2,000 images of 50 objects, 80 classes"
    each = "200 images of 50 objects, each of 20 classes"
    return [
        Row.slowdown(what, "torchmetrics on pycocotools", long["ours"], long["theirs"], "cpu", "<= 0.2"),
        Row.slowdown(what, "torchmetrics on faster_coco_eval", times["ours"], times["fast"], "cpu", "<= 0.77"),
        Row.slowdown(each, "torchmetrics on faster_coco_eval", times["classes, ours"], times["classes, fast"], "cpu"),
        Row("of this, all updates, in batches of 32", "", times["updates"], "cpu"),
    ]


def scenes(images: int, objects: int, classes: int) -> tuple[Images, Images]:
    """Results and targets: as many detections as objects, most of them near one and of its class."""
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.rand(size, generator=generator)

    results, targets = [], []
    for number in range(images):
        corner, side = 400 * draw(objects, 2), 4 + 150 * draw(objects, 2)
        boxes, labels = torch.cat([corner, corner + side], 1), 1 + (draw(objects) * classes).long()
        named = {"image_id": torch.tensor(number), "iscrowd": 0 * labels, "area": side.prod(1)}
        targets.append({"boxes": boxes, "labels": labels, **named})
        near = boxes + 8 * draw(objects, 4) - 4
        guess = torch.where(draw(objects) < 0.8, labels, 1 + (draw(objects) * classes).long())
        results.append({"boxes": near, "labels": guess, "scores": draw(objects)})
    return results, targets


def judging(metric: CocoMAP | MeanAveragePrecision, results: Images, targets: Images) -> Callable[[], None]:
    """An epoch of evaluation without its network."""
    update = updating(metric, results, targets)

    def run() -> None:
        update()
        metric.compute()

    return run


def updating(
    metric: CocoMAP | MeanAveragePrecision, results: Sequence[dict[str, Tensor]], targets: Images
) -> Callable[[], None]:
    """Only the part that comes with each batch."""

    def run() -> None:
        for start in range(0, len(results), 32):
            metric.update(list(results[start : start + 32]), targets[start : start + 32])

    return run
