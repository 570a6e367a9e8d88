"""A small folder of images with Open Images' tables, nothing downloaded."""

import csv
import json
from pathlib import Path

from support.box_files import Scene, draw_scenes

__all__ = ["ABOVE", "IDS", "open_images_folder", "rewrite"]

IDS = {"figure": "/m/01", "polygon": "/m/02", "square": "/m/03", "disc": "/m/04", "triangle": "/m/05"}
"""Ids by name, in the order of the descriptions."""

ABOVE = {"figure": [], "polygon": ["figure"], "square": ["figure", "polygon"], "disc": ["figure"]}
ABOVE["triangle"] = ABOVE["square"]

BOXES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
LABELS = "ImageID,Source,LabelName,Confidence"


def open_images_folder(root: str | Path, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """Images in `train` and `validation`, tables of boxes and of verified labels, descriptions and hierarchy.

    An image's name is 16 hexadecimal digits. Of each image people verified which of disc, square and triangle are
    there, and of every second one that the first of these that is not there is absent; a machine believes in figures.

    Args:
        root: Folder to make, returned.
        train: Images to train on.
        val: Images to validate with.
        seed: Fixes all.
    """
    root = Path(root)
    for number, (split, images) in enumerate((("train", train), ("validation", val))):
        (root / split).mkdir(parents=True)
        boxes, labels = [BOXES.split(",")], [LABELS.split(",")]
        for index, scene in enumerate(draw_scenes(images, seed + number)):
            name = f"{13 - number:x}{index:015x}"
            scene.image.save(root / split / f"{name}.png")
            boxes += [[name, "xclick", *row] for row in _boxes(scene)]
            labels += [[name, "verification", IDS[kind], "1"] for kind in sorted({*scene.names})]
            absent = [kind for kind in ("disc", "square", "triangle") if kind not in scene.names]
            if absent and index % 2:
                labels.append([name, "verification", IDS[absent[0]], "0"])
            labels.append([name, "machine", IDS["figure"], "0.7"])
        _write(root / f"{split}-annotations-bbox.csv", boxes)
        _write(root / f"{split}-annotations-human-imagelabels-boxable.csv", labels)
    _write(root / "class-descriptions-boxable.csv", [[identity, name.title()] for name, identity in IDS.items()])
    polygon = {"LabelName": IDS["polygon"], "Subcategory": [{"LabelName": IDS[it]} for it in ("square", "triangle")]}
    figure = {"LabelName": IDS["figure"], "Subcategory": [{"LabelName": IDS["disc"]}, polygon]}
    tree = {"LabelName": "/m/0bl9f", "Subcategory": [figure]}
    (root / "bbox_labels_600_hierarchy.json").write_text(json.dumps(tree))
    return root


def rewrite(file: Path, line: int, **cells: str) -> None:
    """Change cells of a table, by the names in its first line; lines count from 1."""
    with open(file, newline="") as text:
        rows = list(csv.reader(text))
    for name, cell in cells.items():
        rows[line - 1][rows[0].index(name)] = cell
    _write(file, rows)


def _boxes(scene: Scene) -> list[list[str]]:
    width, height = scene.image.size
    return [
        [
            IDS[name],
            "1",
            *(f"{it:.8f}" for it in (left / width, right / width, top / height, bottom / height)),
            *"00000",
        ]
        for name, (left, top, right, bottom) in zip(scene.names, scene.boxes, strict=True)
    ]


def _write(file: Path, rows: list[list[str]]) -> None:
    with open(file, "w", newline="") as text:
        csv.writer(text).writerows(rows)
