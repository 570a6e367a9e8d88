"""What CocoMAP keeps of a batch, and which batches it refuses."""

import pytest
import torch

from lightning_vision.detection.coco_metric import CocoMAP
from support.coco import Images, counted, scene

BOX = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([5]), "scores": torch.tensor([0.5])}
BACKGROUND = {**BOX, "labels": torch.tensor([0])}
DRAWN = {**BOX, "masks": torch.zeros(1, 8, 8)}
PLACED = {**BOX, "placement": torch.tensor([1.0, 1, 0, 0])}


def test_boxes_are_judged_in_the_pixels_of_the_original_images() -> None:
    results, targets = scene(1)
    placement = torch.tensor([0.5, 0.25, 8.0, 16.0])
    moved = [
        [{**item, "boxes": item["boxes"] * placement[[0, 1, 0, 1]] + placement[[2, 3, 2, 3]]} for item in items]
        for items in (results, targets)
    ]
    placed = [{**item, "placement": placement} for item in moved[1]]

    assert counted(results, targets) == counted(moved[0], placed)
    assert counted(results, targets) != counted(*moved)


def test_an_image_that_came_twice_counts_once() -> None:
    results, targets = scene(2)

    with pytest.warns(UserWarning, match="3 images came more than once by their `image_id`"):
        twice = counted(results + results[:3], targets + targets[:3])
    assert counted(results, targets) == twice


@pytest.mark.parametrize(
    ("metric", "results", "targets", "message"),
    [
        (CocoMAP(4), [], [BOX], "results of 0 images and targets of 1; give as many"),
        (CocoMAP(4), [BOX], [BOX], "labels of the found objects lie in 5..5, outside 1..4; 0 is the background's"),
        (CocoMAP(5), [BOX], [BACKGROUND], "labels of the known objects lie in 0..0, outside 1..5"),
        (
            CocoMAP(5, masks=True),
            [BOX],
            [DRAWN],
            "the found objects of image 0 of the batch have no `masks`, and masks",
        ),
        (CocoMAP(5, masks=True), [DRAWN], [BOX], "the known objects of image 0 .* a detector other than mask_rcnn"),
        (CocoMAP(5), [BOX, BOX], [PLACED, BOX], "image 1 of the batch has no `placement` and image 0 has one; give it"),
    ],
    ids=["unequal", "found label", "known label", "masks not found", "masks not known", "half placed"],
)
def test_what_does_not_fit_is_refused(metric: CocoMAP, results: Images, targets: Images, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric.update(results, targets)
