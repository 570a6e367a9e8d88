"""Reading COCO's annotation files: every number checked once, then packed."""

import json
import math
from array import array
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeGuard

from ._findings import Findings
from ._image_files import ImageFiles
from ._objects import Objects, pack_objects
from ._shapes import Outlines, tensor_of

__all__ = ["check_categories", "check_known", "read_coco", "read_coco_objects"]

Categories = dict[int, str]


def read_coco(file: Path, masks: bool = False) -> dict[str, Any]:
    """The lists of a file.

    Args:
        file: COCO's JSON.
        masks: Keep `segmentation`, which is most of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or none with lists of images and categories, or has no images.
    """
    if not file.is_file():
        raise FileNotFoundError(f"there is no annotation file {file}")
    try:
        with open(file, encoding="utf-8-sig") as text:
            found = json.load(text, object_hook=_with_packed_outline if masks else _without_outline)
    except (ValueError, RecursionError) as error:  # also of text that is not UTF-8
        raise ValueError(f"{file} cannot be read as JSON: {error}; export it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no COCO annotations, but a {type(found).__name__}; export it as COCO JSON")
    for name in ("images", "annotations", "categories"):
        optional = name == "annotations" and name not in found
        if not optional and not isinstance(found.get(name), list):
            raise ValueError(f"{file} has no list of {name}; export it as COCO JSON")
    if not found["images"]:
        raise ValueError(f"{file} has annotations of 0 images; add some, or leave this split out")
    return found


def check_categories(entries: list[Any], findings: Findings) -> Categories:
    """Names by id, in ascending order of the ids.

    Raises:
        ValueError: there is none, one has no id or name, or two have the same.
    """
    where = findings.where
    names: Categories = {}
    for number, entry in enumerate(entries):
        identity, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if not _whole(identity) or not isinstance(name, str):
            raise ValueError(f"{where}: entry {number} of its categories has no whole number id and no name; mend it")
        if identity in names:
            raise ValueError(f"{where}: category id {identity} is there twice; give each category an id of its own")
        if name in names.values():
            raise ValueError(f"{where}: two categories are called {name!r}, one is id {identity}; rename one")
        names[identity] = name
    if not names:
        raise ValueError(f"{where} has 0 categories; name the classes")
    return dict(sorted(names.items()))


def check_known(categories: Categories, trained: Categories, file: str, training: str) -> None:
    """Refuse categories that training has not, or calls otherwise.

    Raises:
        ValueError: there is one.
    """
    for identity, name in categories.items():
        if trained.get(identity) != name:
            there = repr(trained[identity]) if identity in trained else "not there"
            raise ValueError(
                f"{file}: category id {identity} is {name!r}, in {training} it is {there}; give all splits the same "
                "categories"
            )


def read_coco_objects(
    found: dict[str, Any],
    categories: Categories,
    files: ImageFiles,
    findings: Findings,
    masks: bool,
) -> Objects:
    """Images and objects of one file; their boxes are still to be checked.

    Args:
        found: From `read_coco`.
        categories: Those of training, whose order gives the labels 1..K.
        files: Where the images lie.
        findings: Takes what is wrong.
        masks: Keep outlines.

    Raises:
        ValueError: with `findings.on_bad` "error", something cannot be used; always, when no image is left.
    """
    paths, ids, sizes, places = _images(found["images"], files, findings)
    labels = {identity: number for number, identity in enumerate(categories, 1)}
    numbers = {name: array("q") for name in ("owner", "label", "crowd", "source", "shape")}
    boxes, area, outlines = array("d"), array("d"), Outlines()
    seen: set[int] = set()
    for number, entry in enumerate(found.get("annotations", [])):
        try:
            identity, image, box, size = _annotation(entry, number, seen, places, labels)
            seen.add(identity)
            place = places[image]
            if place is None:
                continue
            shape = _outline(outlines, entry, identity, sizes[place]) if masks else -1
        except ValueError as error:
            findings.bad(str(error))
            continue
        left, top, width, height = box
        boxes.extend((left, top, left + width, top + height))
        area.append(width * height if size is None else size)
        values = (place, labels[entry["category_id"]], bool(entry.get("iscrowd")), identity, shape)
        for column, value in zip(numbers.values(), values, strict=True):
            column.append(value)
    columns = {name: tensor_of(values) for name, values in numbers.items()}
    return pack_objects(
        paths,
        ids,
        sizes,
        columns["owner"],
        tensor_of(boxes).float(),
        columns["label"],
        columns["crowd"].bool(),
        tensor_of(area).float(),
        columns["source"],
        columns["shape"],
        outlines.packed() if masks else None,
    )


def _images(
    entries: list[Any], files: ImageFiles, findings: Findings
) -> tuple[list[str], list[int], list[tuple[int, int]], dict[int, int | None]]:
    """Path, id and size of those that can be used, and where each id stands among them; None if it was left out."""
    paths: list[str] = []
    sizes: list[tuple[int, int]] = []
    places: dict[int, int | None] = {}
    for number, entry in enumerate(entries):
        identity = entry.get("id") if isinstance(entry, dict) else None
        try:
            if not _whole(identity):
                raise ValueError(f"entry {number} of its images has no whole number id")
            if identity in places:
                raise ValueError(f"image id {identity} is there twice")
            places[identity] = None
            size = entry.get("height"), entry.get("width")
            if not all(_whole(side) and side > 0 for side in size):
                raise ValueError(f"image id {identity} has height {size[0]} and width {size[1]}, no numbers of pixels")
            try:
                path = files.path(str(entry.get("file_name")))
            except ValueError as error:
                raise ValueError(f"image id {identity} {error}") from error
        except ValueError as error:
            findings.bad(str(error))
            continue
        places[identity] = len(paths)
        paths.append(path)
        sizes.append(size)
    if not paths:
        raise ValueError(f"{findings.where}: none of its {len(entries)} images can be used; look into {files.folder}")
    return paths, [identity for identity, place in places.items() if place is not None], sizes, places


def _annotation(
    entry: Any, number: int, seen: set[int], places: dict[int, int | None], labels: dict[int, int]
) -> tuple[int, int, tuple[float, float, float, float], float | None]:
    """Id, image id, box as left, top, width, height, and area where it is written."""
    identity = entry.get("id") if isinstance(entry, dict) else None
    if not _whole(identity):
        raise ValueError(f"entry {number} of its annotations has no whole number id")
    if identity in seen:
        raise ValueError(f"annotation id {identity} is there twice")
    for name, known in (("image", places), ("category", labels)):
        if not _whole(other := entry.get(f"{name}_id")) or other not in known:
            raise ValueError(f"annotation {identity} is of {name} id {other!r}, which is not in the file")
    box, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(_number(side) for side in box):
        raise ValueError(f"annotation {identity} has no box of four numbers, left, top, width and height")
    if area is not None and not (_number(area) and 0 <= area < math.inf):
        raise ValueError(f"annotation {identity} has the area {area!r}, which is no number of square pixels")
    if crowd not in (0, 1):
        raise ValueError(f"annotation {identity} has iscrowd {crowd!r}; give 0 or 1")
    return identity, entry["image_id"], (box[0], box[1], box[2], box[3]), area


def _outline(outlines: Outlines, entry: dict[str, Any], identity: int, size: tuple[int, int]) -> int:
    try:
        return outlines.add(entry.get("segmentation"), size)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"annotation {identity} has {error}") from error


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _number(value: Any) -> bool:
    return isinstance(value, float) or _whole(value)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry


def _with_packed_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Lists of numbers would take four times the memory until all of the file is read."""
    outline = entry.get("segmentation")
    if isinstance(outline, list):
        with suppress(OverflowError, TypeError):  # which is told when its annotation is read
            entry["segmentation"] = [array("f", polygon) for polygon in outline]
    return entry
