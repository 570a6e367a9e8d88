"""Reading Open Images' tables line by line: millions of rows, of which only the wanted columns and classes are kept."""

import csv
from array import array
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..common._file_source import stable_key
from ._findings import Findings, OnBadAnnotation
from ._image_files import ImageFiles
from ._objects import Objects, pack_objects
from ._open_images_classes import Classes
from ._verified import Verified, pack_verified

__all__ = ["FLAGS", "SplitImages", "draw_images", "read_split"]

FLAGS = ("IsOccluded", "IsTruncated", "IsDepiction", "IsInside")
SIDES = ("XMin", "YMin", "XMax", "YMax")
HEX = 16
"""Digits of an image's name."""


class SplitImages:
    """The images of a split, numbered as rows name them; each file is looked for once.

    Args:
        files: The folder that holds them.
    """

    def __init__(self, files: ImageFiles) -> None:
        self.files, self.paths, self.names = files, list[str](), list[str]()
        self.boxed: set[str] = set()
        """Images that any row of boxes names, of whatever class."""
        self._numbers: dict[str, int | None] = {}

    def number(self, name: str, line: int, findings: Findings) -> int | None:
        """Which one this is, None for one whose file is not there, which is told once.

        Raises:
            ValueError: with `findings.on_bad` "error", the file is not there.
        """
        if name not in self._numbers:
            self._numbers[name] = None
            try:
                path = self.files.path(self.files.of_stem(name) or f"{name}.jpg")
            except ValueError as error:
                findings.bad(f"line {line} {error}")
                return None
            self._numbers[name] = len(self.paths)
            self.paths.append(path)
            self.names.append(name)
        return self._numbers[name]

    def ids(self) -> list[int]:
        """The names as numbers of 64 bits with a sign where all are 16 hexadecimal digits, otherwise 1, 2, 3, ..."""
        try:
            numbers = [int(name, 16) for name in self.names if len(name) == HEX]
        except ValueError:
            numbers = []
        if len({*numbers}) < len(self.names):
            return list(range(1, len(self.names) + 1))
        return [number - 2**64 if number >= 2**63 else number for number in numbers]


def read_split(
    boxes: Path | None,
    answers: Path | None,
    classes: Classes,
    images: SplitImages,
    on_bad: OnBadAnnotation,
    training: bool,
    ignored: tuple[str, ...],
) -> tuple[Objects, Verified | None]:
    """The images of a split with their boxes, and what is known of the images' classes.

    Args:
        boxes: `*-annotations-bbox.csv`, None for labels alone.
        answers: `*-annotations-human-imagelabels*.csv`, None where there is no such table.
        classes: The chosen ones.
        images: Numbers the images.
        on_bad: What a row does that cannot be used.
        training: Of images with labels take only those that rows of boxes name, where there are any.
        ignored: Columns of flags; what has one is marked as groups are.
    """
    rows = (*(np.zeros(0, np.int32) for _ in range(4)), np.zeros((0, 4), np.float32))
    if boxes is not None:
        findings = Findings(str(boxes), on_bad)
        rows = read_boxes(boxes, classes, images, findings, ignored)
        findings.tell()
    verified = None
    if answers is not None:
        findings = Findings(str(answers), on_bad)
        owner, label, present = read_answers(answers, classes, images, findings, training and boxes is not None)
        findings.tell()
        # A box says that its class is there.
        said = np.append(owner, rows[0]), np.append(label, rows[1]), np.append(present, np.ones(len(rows[0])))
        verified = pack_verified(len(images.paths), len(classes.names), *said)
    return pack_boxes(images, rows), verified


def draw_images(names: list[str], most: int | None) -> Tensor:
    """Positions of at most so many, ascending, int64; which they are depends on the names alone."""
    drawn = (
        sorted(range(len(names)), key=lambda number: stable_key(names[number]))[:most] if most else range(len(names))
    )
    return torch.tensor(sorted(drawn))


def read_boxes(
    file: Path, classes: Classes, images: SplitImages, findings: Findings, ignored: tuple[str, ...]
) -> tuple[np.ndarray, ...]:
    """Image, label, crowd, line, `(M,)` each, and left, top, right, bottom as fractions of the image, `(M, 4)`.

    A box has a row for each of its labels.

    Args:
        file: `*-annotations-bbox.csv`.
        classes: The chosen ones.
        images: Numbers the images, and more of them.
        findings: Takes what is wrong.
        ignored: Columns of flags; what has one is marked as groups are.

    Raises:
        ValueError: the file has no such columns; with `findings.on_bad` "error", a row cannot be used.
    """
    owner, label, crowd, source, boxes = array("i"), array("h"), array("b"), array("i"), array("f")
    columns = ("ImageID", "LabelName", *SIDES, "IsGroupOf", *ignored)
    for line, (name, kind, *cells) in _rows(file, columns, findings):
        images.boxed.add(name)
        labels = classes.present.get(kind)
        if labels is None:
            findings.bad(f"line {line} is of the class {kind!r}, which the class descriptions have not")
        if not labels:
            continue
        try:
            left, top, right, bottom = map(float, cells[:4])
        except ValueError:
            left = top = right = bottom = float("nan")
        if not (0 <= left <= right <= 1 and 0 <= top <= bottom <= 1):
            said = ", ".join(f"{side} {cell}" for side, cell in zip(SIDES, cells, strict=False))
            findings.bad(f"line {line} has {said}, which is no box inside an image, whose sides go from 0 to 1")
            continue
        if left == right or top == bottom:
            findings.note("boxes without area dropped", f"line {line}")
            continue
        number = images.number(name, line, findings)
        if number is None:
            continue
        marked = "1" in cells[4:]
        for it in labels:
            owner.append(number)
            label.append(it)
            crowd.append(marked)
            source.append(line)
            boxes.extend((left, top, right, bottom))
    return (*(np.asarray(it) for it in (owner, label, crowd, source)), np.asarray(boxes).reshape(-1, 4))


def pack_boxes(images: SplitImages, rows: tuple[np.ndarray, ...]) -> Objects:
    """`Objects` with boxes as fractions, of images whose size only their files know."""
    owner, label, crowd, source, boxes = (torch.from_numpy(it.copy()) for it in rows)
    sizes = [(0, 0)] * len(images.paths)
    return pack_objects(
        images.paths, images.ids(), sizes, owner.long(), boxes, label.long(), crowd.bool(), source=source.long()
    )


def read_answers(
    file: Path, classes: Classes, images: SplitImages, findings: Findings, boxed: bool
) -> tuple[np.ndarray, ...]:
    """What people said of whole images: image, label, and 1 present or 0 absent; what machines said is passed over.

    Args:
        file: `*-annotations-human-imagelabels*.csv`.
        classes: The chosen ones.
        images: Numbers the images, and more of them.
        findings: Takes what is wrong.
        boxed: Take only images that rows of boxes name.

    Raises:
        ValueError: the file has no such columns; with `findings.on_bad` "error", a row cannot be used.
    """
    owner, label, present = array("i"), array("h"), array("b")
    for line, (name, kind, origin, confidence) in _rows(
        file, ("ImageID", "LabelName", "Source", "Confidence"), findings
    ):
        if kind not in classes.present:
            findings.bad(f"line {line} is of the class {kind!r}, which the class descriptions have not")
            continue
        try:
            sure = float(confidence)
        except ValueError:
            sure = float("nan")
        if not 0 <= sure <= 1:
            findings.bad(f"line {line} has the confidence {confidence!r}; it is 1 present, 0 absent or between")
            continue
        labels = (classes.present if sure else classes.absent)[kind]
        # Between lies what a machine believes, and it may believe firmly.
        if not labels or sure not in (0, 1) or origin.startswith("machine") or (boxed and name not in images.boxed):
            continue
        number = images.number(name, line, findings)
        if number is None:
            continue
        for it in labels:
            owner.append(number)
            label.append(it)
            present.append(sure == 1)
    return tuple(np.asarray(it) for it in (owner, label, present))


def _rows(file: Path, columns: tuple[str, ...], findings: Findings) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Number of each line and its cells in these columns."""
    with open(file, newline="", encoding="utf-8-sig") as text:
        rows = csv.reader(text)
        header = next(rows, [])
        if missing := [name for name in columns if name not in header]:
            raise ValueError(
                f"{file} has no column {', '.join(missing)}; its first line is {','.join(header)!r}, download it again"
            )
        pick = itemgetter(*map(header.index, columns))
        for row in rows:
            if len(row) != len(header):
                if row:
                    findings.bad(f"line {rows.line_num} has {len(row)} cells, the first line {len(header)}")
                continue
            yield rows.line_num, pick(row)
