"""Reading PASCAL VOC's annotations, one XML file an image."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import torch

from ._findings import Findings
from ._image_files import ImageFiles, upright_size
from ._objects import Objects, pack_objects

__all__ = ["VOCImage", "pack_voc", "read_image_set", "read_voc", "read_voc_file"]

LARGEST = 64 * 2**20
"""Bytes; no image has annotations of that size."""


@dataclass(frozen=True)
class VOCImage:
    """What one file says.

    Args:
        name: Of the image, without its ending.
        path: The image file.
        size: Height and width, pixels.
        classes: Names of the objects' classes.
        boxes: Left, top, right, bottom, pixels counted from 0, right and bottom behind the last.
        difficult: Whether the object is marked as hard to see.
    """

    name: str
    path: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    difficult: tuple[bool, ...]


def read_image_set(file: Path) -> list[str]:
    """Names of images, the first word of each line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no image, or one twice.
    """
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"there is no image set {file}; the folder has {there}")
    text = file.read_text(encoding="utf-8-sig", errors="replace")  # such a name is told as that of no file
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{file} names 0 images; add some, or leave this split out")
    if len({*names}) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"{file} names the image {twice} twice; remove one")
    return names


def read_voc(names: list[str], images: list[ImageFiles], annotations: Path, findings: Findings) -> list[VOCImage]:
    """The images that can be used.

    Args:
        names: From `read_image_set`.
        images: Folders of which one holds each image.
        annotations: Folder of XML files.
        findings: Takes what is wrong.

    Raises:
        FileNotFoundError: there is no folder of annotations.
        ValueError: with `findings.on_bad` "error", a file cannot be used; always, when none is left.
    """
    if not annotations.is_dir():
        raise FileNotFoundError(f"there is no folder of annotations {annotations}")
    files = ImageFiles(annotations, annotations)
    found = []
    for name in names:
        try:
            place, file = next(((it, file) for it in images if (file := it.of_stem(name))), (images[0], name))
            image = place.path(file)
            found.append(read_voc_file(files.path(f"{name}.xml"), name, image))
        except ValueError as error:
            findings.bad(str(error))
    if not found:
        raise ValueError(f"{findings.where}: none of its {len(names)} images can be used; look into {annotations}")
    return found


def read_voc_file(file: str, name: str, image: str) -> VOCImage:
    """One image's annotations.

    Args:
        file: The XML.
        name: Of the image.
        image: Its file.

    Raises:
        ValueError: it is no XML, declares a document type, or lacks a size, a class or a box; its size is not the
            image's.
    """
    try:
        root = ElementTree.fromstring(_bytes(file), ElementTree.XMLParser(target=_Elements()))
    except ElementTree.ParseError as error:
        raise ValueError(f"{file} cannot be read as XML: {error}") from error
    size = _numbers(root.find("size"), ("height", "width"))
    if size is None or min(size) < 1:
        raise ValueError(f"{file} says no size of its image in pixels")
    try:
        there = upright_size(image)
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise ValueError(f"{file} is of the image {image}, which cannot be decoded") from error
    if size != there:
        raise ValueError(f"{file} says {_sides(size)}, but {image} has {_sides(there)}")
    classes, boxes, difficult = [], [], []
    for number, entry in enumerate(root.findall("object"), 1):
        corners = _numbers(entry.find("bndbox"), ("xmin", "ymin", "xmax", "ymax"))
        label = (entry.findtext("name") or "").strip()
        if corners is None or not label:
            raise ValueError(f"{file} has no {'name' if corners else 'bndbox of four numbers'} for object {number}")
        classes.append(label)
        # The file counts pixels from 1 and names the last that belongs to the object.
        boxes.append((corners[0] - 1, corners[1] - 1, corners[2], corners[3]))
        difficult.append((entry.findtext("difficult") or "0").strip() == "1")
    return VOCImage(name, image, (int(size[0]), int(size[1])), tuple(classes), tuple(boxes), tuple(difficult))


def pack_voc(found: list[VOCImage], class_names: list[str], findings: Findings, crowd: bool) -> Objects:
    """Images and objects of one split; their boxes are still to be checked.

    Args:
        found: From `read_voc`.
        class_names: In the order of the labels 1..K.
        findings: Takes what is wrong.
        crowd: Treat difficult objects as crowds: neither trained on nor judged.

    Raises:
        ValueError: with `findings.on_bad` "error", a class is unknown.
    """
    labels = {name: number for number, name in enumerate(class_names, 1)}
    rows: list[tuple[int, int, int, bool]] = []
    boxes: list[tuple[float, float, float, float]] = []
    for place, image in enumerate(found):
        for number, (name, box) in enumerate(zip(image.classes, image.boxes, strict=True), 1):
            if name not in labels:
                findings.bad(f"object {number} of {image.name}.xml is a {name!r}, which is no class of training")
                continue
            rows.append((place, labels[name], number, crowd and image.difficult[number - 1]))
            boxes.append(box)
    owner, label, source, ignored = torch.tensor(rows, dtype=torch.int64).view(-1, 4).unbind(1)
    return pack_objects(
        [image.path for image in found],
        _image_ids([image.name for image in found]),
        [image.size for image in found],
        owner,
        torch.tensor(boxes, dtype=torch.float32),
        label,
        ignored.bool(),
        source=source,
    )


class _Elements(ElementTree.TreeBuilder):
    """Refuses a document type: its entities may grow without bounds or name other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ElementTree.ParseError("it declares a document type, which annotations do not need")


def _bytes(file: str) -> bytes:
    path = Path(file)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{file} has more than {LARGEST // 2**20} MiB, too much for one image's annotations")
    return path.read_bytes()


def _numbers(entry: ElementTree.Element | None, names: tuple[str, ...]) -> tuple[float, ...] | None:
    try:
        return None if entry is None else tuple(float(entry.findtext(name) or "") for name in names)
    except ValueError:
        return None


def _sides(size: tuple[float, ...]) -> str:
    return f"{size[1]:g} x {size[0]:g} pixels"


def _image_ids(names: list[str]) -> list[int]:
    """The digits of the names where these are unique numbers below 2^63, otherwise 1, 2, 3, ..."""
    digits = [name.replace("_", "") for name in names]
    ids = [int(text) for text in digits if text.isdecimal() and len(text) < 19]
    return ids if len({*ids}) == len(names) else list(range(1, len(names) + 1))
