"""Results and targets of batches as packed rows in the pixels of the original images, and those of all ranks together.

Letters: B images of a batch, M objects or detections.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as rle
from torch import Tensor

from ._coco_counts import Objects
from ._packed import Packed
from .placement import original_boxes, original_rles

__all__ = ["COLUMNS", "append_batch", "empty_rows", "image_numbers", "merged"]

Found = Mapping[str, Tensor]

COLUMNS = {
    "images": ("i8", 4),  # whether it has a name, the name, height, width
    "known": ("f8", 8),  # image, left, top, width, height, label, crowd, area
    "found": ("f8", 7),  # image, left, top, width, height, label, score
}
MASKS = {"known_lengths": ("i8", 1), "known_rles": ("u1", 1), "found_lengths": ("i8", 1), "found_rles": ("u1", 1)}


def empty_rows(masks: bool) -> Packed:
    """Rows of no images, with room for masks where they are asked for."""
    return Packed(COLUMNS | MASKS if masks else COLUMNS)


def append_batch(
    rows: Packed, results: Sequence[Found], targets: Sequence[Found], num_classes: int, masks: bool
) -> None:
    """Add the images of a batch, with few copies to the host; see `CocoMAP.update` for what it holds.

    Raises:
        ValueError: results and targets are not of the same images, a label is outside 1..K, there are no masks, or
            only some targets say where their image came from.
    """
    if len(results) != len(targets):
        raise ValueError(f"there are results of {len(results)} images and targets of {len(targets)}; give as many")
    if not targets:
        return
    if masks:
        _check_masks(results, targets)
    first = len(rows["images"])
    placement, size, names = (_each(targets, name) for name in ("placement", "size", "image_id"))
    shown = [it["masks"].shape[-2:] if masks else (0, 0) for it in targets]
    sizes = np.array(shown) if size is None else size
    name = np.zeros((len(targets), 1)) if names is None else names
    rows.append("images", np.column_stack([np.full(len(targets), names is not None), name, sizes]))
    spare = [{"iscrowd": torch.zeros_like(it["labels"]), "area": it["labels"] * torch.nan} for it in targets]
    known = [{**less, **it} for less, it in zip(spare, targets, strict=True)]
    columns = {"found": ("boxes", "labels", "scores"), "known": ("boxes", "labels", "iscrowd", "area")}
    for kind, items in (("found", results), ("known", known)):
        counts = [len(it["labels"]) for it in items]
        parts = [torch.cat([it[column].float() for it in items]) for column in columns[kind]]
        table = torch.column_stack([parts[0].reshape(-1, 4), *parts[1:]]).cpu().double().numpy()
        _check_labels(table[:, 4], num_classes, kind)
        image = np.repeat(np.arange(len(items)), counts)
        # Detections end at the edge of their image, which in a letterboxed one is not that of the batch.
        edges = size[image] if size is not None and kind == "found" else None
        boxes = original_boxes(table[:, :4], None if placement is None else placement[image], edges)
        boxes[:, 2:] -= boxes[:, :2]
        rows.append(kind, np.column_stack([first + image, boxes, table[:, 4:]]))
        if masks:
            _append_masks(rows, kind, items, placement, sizes)


def merged(parts: Sequence[Packed], masks: bool) -> tuple[dict[str, tuple[Objects, Objects]], int, int]:
    """Known and found objects of all ranks for boxes (`""`) and masks (`segm_`), how many images, how many repeated.

    Images are in the order of their names, as COCO's evaluation has them, for of equal scores in two images the earlier
    one counts as the better; where they have none, in the order in which ranks that take turns saw them.
    """
    images = np.concatenate([part["images"] for part in parts])
    number, kept = image_numbers([part["images"] for part in parts])
    starts = np.cumsum([0, *(len(part["images"]) for part in parts)])
    pairs: dict[str, list[Objects]] = {"": [], "segm_": []} if masks else {"": []}
    for name in ("known", "found"):
        rows = np.concatenate([part[name] for part in parts])
        seen_as = rows[:, 0].astype(int) + np.repeat(starts[:-1], [len(part[name]) for part in parts])
        once = kept[seen_as]
        rows, seen_as = rows[once], seen_as[once]
        boxes, label, value = rows[:, 1:5], rows[:, 5].astype(int), rows[:, 6].astype(int if name == "known" else float)
        given = rows[:, 7] if name == "known" else np.full(len(rows), np.nan)
        area = np.where(np.isnan(given), boxes[:, 2] * boxes[:, 3], given)
        pairs[""].append(Objects(number[seen_as], label, boxes, value, area))
        if masks:
            counts = [text for part in parts for text in _texts(part, name)]
            drawn = [
                {"size": images[image, 2:].tolist(), "counts": counts[row]}
                for row, image in zip(np.flatnonzero(once).tolist(), seen_as.tolist(), strict=True)
            ]
            drawn_area = np.where(np.isnan(given), rle.area(drawn) if drawn else [], given)
            pairs["segm_"].append(Objects(number[seen_as], label, boxes, value, drawn_area, drawn))
    return {kind: (known, found) for kind, (known, found) in pairs.items()}, int(kept.sum()), int((~kept).sum())


def image_numbers(ranks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each image, rank by rank, its number among the different ones and whether it is the first of its name."""
    images = np.concatenate(ranks)
    if images[:, 0].all():
        _, firsts, number = np.unique(images[:, 1], return_index=True, return_inverse=True)
        return number, np.isin(np.arange(len(images)), firsts)
    place = np.concatenate([np.arange(len(rank)) for rank in ranks])  # of equal ones the lower rank is first
    return np.argsort(np.argsort(place, kind="stable")), np.ones(len(images), bool)


def _each(targets: Sequence[Found], name: str) -> np.ndarray | None:
    known = [name in it for it in targets]
    if not any(known):
        return None
    if not all(known):
        raise ValueError(
            f"image {known.index(False)} of the batch has no `{name}` and image {known.index(True)} has one; "
            "give it for all or for none"
        )
    return torch.stack([torch.as_tensor(it[name]).flatten() for it in targets]).cpu().numpy()


def _check_labels(labels: np.ndarray, num_classes: int, name: str) -> None:
    if len(labels) and not 1 <= labels.min() <= labels.max() <= num_classes:
        raise ValueError(
            f"labels of the {name} objects lie in {labels.min():.0f}..{labels.max():.0f}, outside 1..{num_classes}; "
            "0 is the background's"
        )


def _check_masks(results: Sequence[Found], targets: Sequence[Found]) -> None:
    for kind, items in (("known", targets), ("found", results)):
        if missing := [place for place, it in enumerate(items) if "masks" not in it]:
            raise ValueError(
                f"the {kind} objects of image {missing[0]} of the batch have no `masks`, and masks are to be judged; "
                "give them, or judge boxes alone: a detector other than mask_rcnn, CocoMAP without masks=True"
            )


def _append_masks(rows: Packed, name: str, items: Sequence[Found], placement: Any, sizes: np.ndarray) -> None:
    for place, it in enumerate(items):
        moved = None if placement is None else placement[place]
        texts = original_rles(it["masks"], moved, (int(sizes[place, 0]), int(sizes[place, 1])))
        rows.append(f"{name}_lengths", np.array([len(text) for text in texts], int)[:, None])
        rows.append(f"{name}_rles", np.frombuffer(b"".join(texts), np.uint8)[:, None])


def _texts(part: Packed, name: str) -> list[bytes]:
    ends = np.cumsum([0, *part[f"{name}_lengths"][:, 0]]).tolist()
    whole = part[f"{name}_rles"].tobytes()
    return [whole[start:end] for start, end in pairwise(ends)]
