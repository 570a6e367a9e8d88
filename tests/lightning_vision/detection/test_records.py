"""Records and COCO results of detections, by hand."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch import Tensor

from lightning_vision.detection.records import coco_results, detection_records

FOUND = {
    "boxes": torch.tensor([[0.0, 8.0, 8.0, 16.0], [8.0, 10.0, 90.0, 20.0]]),
    "labels": torch.tensor([1, 2]),
    "scores": torch.tensor([0.25, 0.75]),
}
# Of 40 rows and 64 columns, halved and 6 pixels lower.
KNOWN = {
    "image_id": torch.tensor(42),
    "placement": torch.tensor([0.5, 0.5, 0.0, 6.0]),
    "size": torch.tensor([40, 64]),
    "boxes": torch.tensor([[2.0, 8.0, 4.0, 10.0]]),
    "labels": torch.tensor([2]),
}
NAMES, IDS = ["cat", "dog"], [17, 90]


def test_a_record_holds_original_pixels_names_and_the_numbers_of_the_source() -> None:
    (record,) = detection_records([FOUND], [KNOWN], [3], NAMES, IDS, ["a.png"])
    dog = {"label": 2, "category_id": 90, "class_name": "dog", "box": [16.0, 8.0, 64.0, 28.0], "score": 0.75}
    cat = {"label": 1, "category_id": 17, "class_name": "cat", "box": [0.0, 4.0, 16.0, 20.0], "score": 0.25}
    true = {"label": 2, "category_id": 90, "class_name": "dog", "box": [4.0, 4.0, 8.0, 8.0]}

    assert record == {
        "path": "a.png",
        "index": 3,
        "image_id": 42,
        "height": 40,
        "width": 64,
        "objects": [dog, cat],
        "true": [true],
    }
    assert coco_results(json.loads(json.dumps(record))) == [
        {"image_id": 42, "category_id": 90, "bbox": [16.0, 8.0, 48.0, 20.0], "score": 0.75},
        {"image_id": 42, "category_id": 17, "bbox": [0.0, 4.0, 16.0, 16.0], "score": 0.25},
    ]


def test_what_nobody_knows_of_an_image_is_null_and_its_number_is_its_position() -> None:
    (record,) = detection_records([FOUND], [None], [3], NAMES, IDS, [None])

    assert {name: record[name] for name in ("path", "image_id", "height", "width", "true")} == {
        "path": None,
        "image_id": 3,
        "height": None,
        "width": None,
        "true": None,
    }
    assert [row["box"] for row in record["objects"]] == FOUND["boxes"].flip(0).tolist()


@pytest.mark.parametrize("placed", [True, False], ids=["placed", "as it is"])
def test_masks_are_run_lengths_of_the_original_image(placed: bool) -> None:
    masks = torch.zeros(2, 1, 32, 32)
    masks[0, 0, 8:16, 0:8] = 0.9
    masks[1, 0, 10:20, 8:32] = 0.9
    (record,) = detection_records([{**FOUND, "masks": masks}], [KNOWN if placed else None], [0], NAMES, IDS, [None])
    dog, cat = (torch.from_numpy(rle.decode(row["segmentation"])) for row in coco_results(record))

    assert [extent(dog), extent(cat)] == (
        [[16, 8, 64, 28], [0, 4, 16, 20]] if placed else [[8, 10, 32, 20], [0, 8, 8, 16]]
    )
    assert dog.shape == ((40, 64) if placed else (32, 32))


def extent(mask: Tensor) -> list[int]:
    down, across = np.nonzero(mask.numpy())
    return [int(it) for it in (across.min(), down.min(), across.max() + 1, down.max() + 1)]
