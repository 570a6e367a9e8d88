"""Average precision as Open Images counts it, from packed arrays: groups, classes that nobody verified, ancestors.

Letters: N images, M objects or detections, K classes. An object of a class in an image has the key `image * (K + 1) +
label`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from faster_coco_eval.core import mask as rle

from ._coco_counts import Objects

__all__ = ["Ancestry", "Protocol", "Verification", "average_precisions"]

Protocol = Literal["open_images", "coco"]
OVERLAP = 0.5
COCO_MOST = 100
"""Detections of an image and class that COCO looks at."""


@dataclass(frozen=True)
class Verification:
    """What is known of classes in images.

    Args:
        told: Of which images this is known at all, bool `(N,)`; in the others every class counts.
        image: Number of the image, int `(V,)`.
        label: 1..K, int `(V,)`.
        present: Whether the class is there, bool `(V,)`.
    """

    told: np.ndarray
    image: np.ndarray
    label: np.ndarray
    present: np.ndarray


class Ancestry:
    """Which labels follow from which.

    Args:
        implied: For each of the labels 1..K those that follow from it.
    """

    def __init__(self, implied: Sequence[Sequence[int]]) -> None:
        counts = np.array([0, *map(len, implied)], dtype=int)
        self._counts, self._starts = counts, np.cumsum(counts) - counts
        self._flat = np.array([label for labels in implied for label in labels], dtype=int)

    def reversed(self) -> "Ancestry":
        """Which labels each label follows from."""
        implied: list[list[int]] = [[] for _ in self._counts[1:]]
        for label in range(1, len(self._counts)):
            for other in self._flat[self._starts[label] :][: self._counts[label]].tolist():
                implied[other - 1].append(label)
        return Ancestry(implied)

    def expand(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows `(M',)` of `label` and labels of them: first all as they are, then one for each that follows."""
        counts = self._counts[label]
        rows = np.repeat(np.arange(len(label)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.append(np.arange(len(label)), rows), np.append(label, self._flat[self._starts[label[rows]] + within])


def average_precisions(
    known: Objects,
    found: Objects,
    verification: Verification,
    num_classes: int,
    protocol: Protocol,
    group_weight: float,
    ancestry: Ancestry | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Of each class the average precision, -1 without an object, and how many objects count, float64 `(K,)` each.

    Args:
        known: The true objects; `value` says which are groups.
        found: Detections, of equal scores the first counts as the better one.
        verification: Which classes count in which images.
        num_classes: K.
        protocol: How detections and objects are paired and precision is averaged over recall.
        group_weight: What a group is worth beside an object.
        ancestry: The ancestors of each class.
    """
    sides = verification
    if ancestry is not None:
        known, found = _expanded(known, ancestry), _expanded(found, ancestry)
        sides = _expanded_sides(sides, ancestry)
    keys = _keys(known.image, known.label, num_classes)
    counted = np.union1d(keys, _keys(sides.image, sides.label, num_classes))
    own = _keys(found.image, found.label, num_classes)
    judged = np.flatnonzero(~sides.told[found.image] | np.isin(own, counted))
    # By image and class, and there the best first.
    judged = judged[np.lexsort((-found.value[judged], own[judged]))]
    by_key = np.argsort(keys, kind="stable")
    hits = np.zeros(len(judged))
    present, first = np.unique(own[judged], return_index=True)
    starts, ends = (np.searchsorted(keys[by_key], present, side=side) for side in ("left", "right"))
    for start, stop, low, high in zip(first, np.append(first, len(judged))[1:], starts, ends, strict=True):
        objects = by_key[low:high]
        hits[start:stop] = _paired(
            found.boxes[judged[start:stop]], known.boxes[objects], known.value[objects] > 0, protocol, group_weight
        )
    label, score = found.label[judged], found.value[judged]
    worth = np.bincount(known.label, np.where(known.value > 0, group_weight, 1.0), num_classes + 1)[1:]
    precision = np.full(num_classes, -1.0)
    for number in np.flatnonzero(worth):
        rows = (label == number + 1) & ~np.isnan(hits)
        precision[number] = _average_precision(score[rows], hits[rows], worth[number], protocol)
    return precision, worth


def _keys(image: np.ndarray, label: np.ndarray, num_classes: int) -> np.ndarray:
    return image * (num_classes + 1) + label


def _expanded(objects: Objects, ancestry: Ancestry) -> Objects:
    rows, label = ancestry.expand(objects.label)
    return Objects(objects.image[rows], label, objects.boxes[rows], objects.value[rows], objects.area[rows])


def _expanded_sides(sides: Verification, ancestry: Ancestry) -> Verification:
    """What is there has ancestors that are there, what is not has no descendants that are."""
    parts = []
    for present, way in ((True, ancestry), (False, ancestry.reversed())):
        chosen = np.flatnonzero(sides.present == present)
        rows, label = way.expand(sides.label[chosen])
        parts.append((sides.image[chosen][rows], label, np.full(len(rows), present)))
    image, label, there = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return Verification(sides.told, image, label, there)


def _paired(
    found: np.ndarray, known: np.ndarray, groups: np.ndarray, protocol: Protocol, group_weight: float
) -> np.ndarray:
    """What each detection of a class in an image is worth, best first `(D,)`: 0 is a false alarm, NaN is ignored."""
    hits = np.zeros(len(found))
    if protocol == "coco":
        hits[COCO_MOST:] = np.nan
        found = found[:COCO_MOST]
    if not len(known):
        return hits
    # Of a group: the share of the detection that lies inside.
    overlap = np.array(rle.iou(found, known, groups.astype(np.uint8))).reshape(len(found), len(known))
    near = overlap >= OVERLAP
    free, plain, group = ~groups, np.flatnonzero(~groups), np.flatnonzero(groups)
    for row in range(len(found)):
        # COCO takes the best object that is left, and of equal ones the last; VOC the best, if it is left.
        candidates = plain[free[plain]] if protocol == "coco" else plain
        best = _last_best(overlap[row], candidates) if protocol == "coco" else _first_best(overlap[row], candidates)
        if best is not None and near[row, best] and free[best]:
            free[best], hits[row] = False, 1.0
        elif (inside := _first_best(overlap[row], group)) is not None and near[row, inside]:
            hits[row] = np.nan if free[inside] or not group_weight else group_weight
            free[inside] = True  # of a group: that it is found
    return hits


def _first_best(overlap: np.ndarray, candidates: np.ndarray) -> int | None:
    return int(candidates[overlap[candidates].argmax()]) if len(candidates) else None


def _last_best(overlap: np.ndarray, candidates: np.ndarray) -> int | None:
    return _first_best(overlap, candidates[::-1])


def _average_precision(score: np.ndarray, hits: np.ndarray, worth: float, protocol: Protocol) -> float:
    """The mean over recall of the best precision at that recall or a higher one."""
    if not len(score):
        return 0.0
    hits = hits[np.argsort(-score, kind="stable")]
    right, wrong = hits.cumsum(), (hits == 0).cumsum()
    recall = right / worth
    precision = np.maximum.accumulate((right / (right + wrong))[::-1])[::-1]
    if protocol == "coco":
        places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        return float(np.append(precision, 0.0)[places].mean())
    return float((np.diff(recall, prepend=0) * precision).sum())
