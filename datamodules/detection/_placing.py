"""Boxes and masks moved along with windows of images that were cut out and resized into places of a canvas.

A window or place is first row, first column, height and width, pixels, int64 `(B, 4)`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from .annotations import Annotations

__all__ = ["fraction", "joined", "move_objects"]


def fraction(name: str, what: str, value: float) -> float:
    """`value` if it is from 0 to 1.

    Raises:
        ValueError: it is not.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {what} is {value}; give a fraction from 0 to 1.")
    return value


def move_objects(
    annotations: Annotations, windows: Tensor, places: Tensor, size: tuple[int, int], min_visible: float
) -> Annotations:
    """Objects where their windows went, cut at the places' edges, without those of which too little is left.

    Dropped is what has less than a pixel of either side left, or less than `min_visible` of its box's area, or none of
    the pixels of its mask.

    Args:
        annotations: Of the images out of which the windows were cut; left alone.
        windows: What was cut out of each image, at least a pixel.
        places: Where it went; height 0 drops all objects of an image.
        size: Height and width of the canvas, pixels.
        min_visible: Fraction from 0 to 1.
    """
    scale = places[:, 2:].double() / windows[:, 2:]
    shift = places[:, :2] - windows[:, :2] * scale
    across = annotations.placement.double() * torch.cat([scale.flip(1), scale.flip(1)], 1)
    across[:, 2:] += shift.flip(1)
    own = annotations.sample
    # Rows before columns in places, columns before rows in boxes.
    grow, move, place = scale.flip(1)[own], shift.flip(1)[own], places[own]
    corners = annotations.boxes.double().view(-1, 2, 2) * grow[:, None] + move[:, None]
    low = place[:, None, :2].flip(2).double()
    inside = corners.clamp(min=low).clamp(max=low + place[:, None, 2:].flip(2))
    left, whole = inside[:, 1] - inside[:, 0], corners[:, 1] - corners[:, 0]
    kept = (left >= 1).all(1) & (left.prod(1) >= min_visible * whole.prod(1))
    masks = annotations.masks
    if masks is not None:
        masks = _moved(masks, windows[own], place, size)
        kept = kept & masks.flatten(1).any(1).bool()
    moved = replace(annotations, boxes=inside.view(-1, 4).float(), placement=across.float(), masks=masks)
    return moved.keep(kept)


def joined(own: Annotations, others: list[Annotations]) -> Annotations:
    """Objects of several batches of the same images, one image's own before the others'; the rest is `own`'s.

    Args:
        own: What says how the images are called and where they lie.
        others: Objects that came into these images; `sample` says into which, in any order.
    """
    names = ["boxes", "labels", "sample", "crowd", "area"] + (["masks"] if own.masks is not None else [])
    rows = {name: torch.cat([getattr(part, name) for part in (own, *others)]) for name in names}
    order = rows["sample"].argsort(stable=True)
    return replace(own, **{name: value[order] for name, value in rows.items()})


def _moved(masks: Tensor, windows: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks `(M, H, W)` on a canvas of `size`, each pixel that of the nearest centre."""
    rows, above = _nearest(windows[:, 0], windows[:, 2], places[:, 0], places[:, 2], size[0])
    columns, beside = _nearest(windows[:, 1], windows[:, 3], places[:, 1], places[:, 3], size[1])
    numbers = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[numbers, rows[:, :, None], columns[:, None, :]] * (above[:, :, None] & beside[:, None, :])


def _nearest(first: Tensor, length: Tensor, start: Tensor, count: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Which pixel of a line each of `side` is taken from, int64 `(M, side)`, and whether it is from the window."""
    here = torch.arange(side, device=first.device) - start[:, None]
    # In whole numbers, so that a centre halfway between two pixels is given to the same one everywhere.
    source = ((2 * here + 1) * length[:, None]).div(2 * count[:, None].clamp(min=1), rounding_mode="floor")
    inside = (here >= 0) & (here < count[:, None])
    return first[:, None] + source.clamp(min=0).minimum(length[:, None] - 1), inside
