"""Small folders of images with boxes as people have them, in COCO's and in PASCAL VOC's layout, nothing downloaded.

An image shows a few discs, squares and triangles in bright colours on grey noise, at least 12 pixels wide and none over
another.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["CATEGORIES", "Scene", "coco_content", "coco_folder", "draw_scenes", "voc_folder", "write_voc"]

CATEGORIES = {3: "disc", 7: "square", 40: "triangle"}
"""Names by id, with the gaps that COCO's ids have."""

COLOURS = {"disc": (250, 60, 60), "square": (60, 220, 60), "triangle": (80, 80, 250)}


@dataclass(frozen=True)
class Scene:
    """An image and its objects: names, boxes as left, top, right, bottom in whole pixels, and their outlines."""

    image: Image.Image
    names: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    polygons: tuple[tuple[int, ...], ...]


def draw_scenes(number: int, seed: int = 0, objects: tuple[int, int] = (1, 3)) -> list[Scene]:
    """Scenes of 48 to 80 pixels a side.

    Args:
        number: How many.
        seed: Fixes all.
        objects: Fewest and most objects to place; what would lie over another is left out.
    """
    draw = np.random.default_rng(seed)
    scenes = []
    for _ in range(number):
        width, height = draw.integers(48, 81, 2).tolist()
        image = Image.fromarray(draw.integers(90, 140, (height, width, 3)).astype(np.uint8))
        names, boxes, polygons = [], [], []
        for name in draw.choice(list(COLOURS), draw.integers(objects[0], objects[1] + 1)).tolist():
            side = int(draw.integers(12, 25))
            left, top = (int(draw.integers(0, most - side + 1)) for most in (width, height))
            right, bottom = left + side, top + side
            if any(left < it[2] and it[0] < right and top < it[3] and it[1] < bottom for it in boxes):
                continue  # none hides another
            corners = (left, top, right, top, right, bottom, left, bottom)
            pencil = ImageDraw.Draw(image)
            if name == "disc":
                pencil.ellipse((left, top, right - 1, bottom - 1), fill=COLOURS[name])
            elif name == "square":
                pencil.rectangle((left, top, right - 1, bottom - 1), fill=COLOURS[name])
            else:
                corners = (left, bottom, right, bottom, left + side // 2, top)
                pencil.polygon((left, bottom - 1, right - 1, bottom - 1, left + side // 2, top), fill=COLOURS[name])
            names.append(name)
            boxes.append((left, top, right, bottom))
            polygons.append(corners)
        scenes.append(Scene(image, tuple(names), tuple(boxes), tuple(polygons)))
    return scenes


def coco_content(scenes: list[Scene], first_id: int = 1) -> dict[str, Any]:
    """What COCO's JSON says of scenes; image n is `000n.png` and has the id `first_id` + n."""
    ids = {name: identity for identity, name in CATEGORIES.items()}
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": identity, "name": name} for identity, name in CATEGORIES.items()],
    }
    for number, scene in enumerate(scenes):
        identity = first_id + number
        width, height = scene.image.size
        content["images"].append({"id": identity, "file_name": f"{number:04}.png", "width": width, "height": height})
        for name, (left, top, right, bottom), polygon in zip(scene.names, scene.boxes, scene.polygons, strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": identity,
                    "category_id": ids[name],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                    "segmentation": [list(polygon)],
                }
            )
    return content


def coco_folder(root: str | Path, train: int = 12, val: int = 6, seed: int = 0) -> Path:
    """`annotations/instances_{train,val}.json` and the folders `train` and `val`; returns `root`.

    Args:
        root: Folder to make.
        train: Images to train on.
        val: Images to validate with.
        seed: Fixes all.
    """
    root = Path(root)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for number, (split, images) in enumerate((("train", train), ("val", val))):
        scenes = draw_scenes(images, seed + number)
        (root / split).mkdir(exist_ok=True)
        for index, scene in enumerate(scenes):
            scene.image.save(root / split / f"{index:04}.png")
        content = coco_content(scenes, first_id=1000 * number + 11)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def write_voc(file: Path, scene: Scene, difficult: tuple[bool, ...] | None = None) -> None:
    """The XML of one scene; VOC's first pixel is 1, and the last is the object's."""
    width, height = scene.image.size
    marks = difficult or (False,) * len(scene.names)
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>{int(mark)}</difficult><bndbox><xmin>{left + 1}</xmin>"
        f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for name, mark, (left, top, right, bottom) in zip(scene.names, marks, scene.boxes, strict=True)
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    file.write_text(f"<annotation>{size}{objects}</annotation>", encoding="utf-8")


def voc_folder(root: str | Path, train: int = 6, val: int = 3, seed: int = 0) -> Path:
    """`JPEGImages`, `Annotations` and `ImageSets/Main/{train,val}.txt`; returns `root`.

    Args:
        root: Folder to make.
        train: Images to train on.
        val: Images to validate with.
        seed: Fixes all.
    """
    root = Path(root)
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    names = [f"2007_{number:06}" for number in range(1, train + val + 1)]
    for name, scene in zip(names, draw_scenes(train + val, seed), strict=True):
        scene.image.save(root / "JPEGImages" / f"{name}.png")
        write_voc(root / "Annotations" / f"{name}.xml", scene)
    for split, part in (("train", names[:train]), ("val", names[train:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(part) + "\n")
    return root
