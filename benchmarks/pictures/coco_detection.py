"""Photographs with boxes in COCO's JSON, letterboxed, and what a policy of augmentation makes of them."""

import json
import shutil
import tempfile
from pathlib import Path

import skimage
from matplotlib.figure import Figure

from lightning_vision.datamodules import CocoDetection

__all__ = ["draw"]

NAMES = ["head", "helmet", "cup", "spoon", "eye", "nose"]
# File, width, height, and objects with left, top, width and height, measured by eye.
PHOTOGRAPHS = [
    ("astronaut.png", 512, 512, [("head", 153, 15, 149, 175), ("helmet", 278, 345, 234, 167)]),
    ("coffee.png", 600, 400, [("cup", 172, 16, 238, 292), ("spoon", 318, 65, 107, 262)]),
    ("chelsea.png", 451, 300, [("eye", 134, 84, 75, 63), ("eye", 294, 108, 52, 57), ("nose", 232, 222, 60, 45)]),
]


def draw() -> Figure:
    """A column a photograph: as it is read, and below as training sees it."""
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    with tempfile.TemporaryDirectory() as folder:
        for number, (file, width, height, objects) in enumerate(PHOTOGRAPHS, 1):
            shutil.copy(Path(skimage.__file__).parent / "data" / file, folder)
            content["images"].append({"id": number, "file_name": file, "width": width, "height": height})
            for name, *box in objects:
                identity, category = len(content["annotations"]) + 1, NAMES.index(name) + 1
                content["annotations"].append(
                    {"id": identity, "image_id": number, "category_id": category, "bbox": box}
                )
        (Path(folder) / "mine.json").write_text(json.dumps(content))
        data = CocoDetection(folder, "mine.json", image_size=160, augment="standard", val_fraction=0, seed=1)
        figure = data.plot("train", count=3, epoch=0, titles=[file for file, *_ in PHOTOGRAPHS])
    figure.set_size_inches(*(0.62 * figure.get_size_inches()))  # the file stays small
    return figure
