"""Boxes and masks on their way back to the pixels of the original image."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from lightning_vision.detection.placement import original_boxes, original_rles


def test_masks_lie_in_the_original_image_where_the_boxes_do() -> None:
    mask = torch.zeros(1, 40, 60, dtype=torch.uint8)
    mask[0, 10:30, 20:50] = 1
    halved = torch.zeros(1, 32, 32)
    halved[0, 1 + 5 : 1 + 15, 1 + 10 : 1 + 25] = 0.9
    (whole,), (back,) = original_rles(mask, None, (40, 60)), original_rles(halved, np.array([0.5, 0.5, 1, 1]), (40, 60))
    overlap = rle.iou(*([{"size": (40, 60), "counts": counts}] for counts in (whole, back)), [0])[0, 0]

    assert overlap > 0.9
    with pytest.raises(ValueError, match=r"masks are \(32, 32\) and their image \(40, 60\); give `placement`"):
        original_rles(halved, None, (40, 60))


def test_detections_end_at_the_edge_of_their_image() -> None:
    boxes = original_boxes(np.array([[-4.0, 8, 99, 40]]), np.array([0.5, 0.5, 0, 4]), (50, 80))

    assert boxes.tolist() == [[0, 8, 80, 50]]
