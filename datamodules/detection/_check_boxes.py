"""Boxes that cannot be, that have no area, that reach over their image: refused, dropped, cut."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ._findings import Findings
from ._objects import Objects

__all__ = ["check_boxes"]


def check_boxes(objects: Objects, findings: Findings, call: str, training: bool, min_size: float) -> Objects:
    """What can be used of them.

    Args:
        objects: As the source has them.
        findings: Takes what is wrong.
        call: How an object is called, with `{source}` and, for its image file's name without ending, `{stem}`.
        training: Cut boxes at their image's edges, which evaluation leaves as they were written.
        min_size: In training, boxes are dropped whose shorter side is below it, pixels.

    Raises:
        ValueError: with `findings.on_bad` "error", a box is not finite, has a side below 0 or lies outside its image.
    """
    boxes, size = objects.boxes, objects.size[objects.owner]
    sides = boxes[:, 2:] - boxes[:, :2]
    edge = size.flip(1).float()
    finite = boxes.isfinite().all(1)
    negative = finite & (sides < 0).any(1)
    flat = finite & ~negative & (sides == 0).any(1)
    outside = finite & ~negative & ~flat & ((boxes[:, :2] >= edge) | (boxes[:, 2:] <= 0)).any(1)
    for wrong, text in (
        (~finite, "has a box with a number that is not finite, {box}"),
        (negative, "has a box of negative size, width {width}, height {height}"),
        (outside, "has a box outside its image, {box} in {across} x {down} pixels"),
    ):
        for row in wrong.nonzero()[:, 0].tolist():
            findings.bad(_told(objects, row, f"{call} {text}"))
    good = finite & ~negative & ~outside & ~flat
    _note(objects, findings, flat, "boxes without area dropped", call)
    if training:
        inside = torch.minimum(boxes.view(-1, 2, 2).clamp(min=0), edge[:, None]).flatten(1)
        # Less is rounding, of which COCO's own files are full.
        reaching = good & ((inside - boxes).abs() >= 1).any(1)
        _note(objects, findings, reaching, "boxes that reach a pixel or more over their image cut", call)
        thin = good & ((inside[:, 2:] - inside[:, :2]) < min_size).any(1)
        _note(objects, findings, thin, f"boxes with a side below {min_size:g} pixels dropped from training", call)
        good &= ~thin
        objects = replace(objects, boxes=inside)
    return objects if bool(good.all()) else objects.keep(good)


def _told(objects: Objects, row: int, text: str) -> str:
    left, top, right, bottom = objects.boxes[row].tolist()
    down, across = objects.size[objects.owner[row]].tolist()
    return text.format(
        source=int(objects.source[row]),
        stem=Path(objects.paths[int(objects.owner[row])]).stem,
        box=f"({left:g}, {top:g}, {right:g}, {bottom:g})",
        width=f"{right - left:g}",
        height=f"{bottom - top:g}",
        across=across,
        down=down,
    )


def _note(objects: Objects, findings: Findings, found: Tensor, kind: str, call: str) -> None:
    for row in found.nonzero()[:, 0].tolist():
        findings.note(kind, _told(objects, row, call))
