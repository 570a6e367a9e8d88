"""What a detector learns from: crowds left out, nonsense told in a sentence."""

import pytest
import torch
from torch import Tensor

from lightning_vision.detection.targets import learnable_targets

IMAGES = torch.zeros(2, 3, 20, 40)


def target(boxes: list[list[float]], labels: list[int], **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64), **more}


def test_crowds_are_dropped_with_all_that_belongs_to_them() -> None:
    masks = torch.stack([torch.zeros(20, 40), torch.ones(20, 40)]).to(torch.uint8)
    crowd = torch.tensor([1, 0])
    both = target([[0, 0, 4, 4], [1, 2, 30, 19]], [1, 2], iscrowd=crowd, masks=masks, image_id=torch.tensor(7))
    first, second = learnable_targets(IMAGES, [both, target([], [])], 2)

    assert (first["boxes"].tolist(), first["labels"].tolist(), int(first["image_id"])) == ([[1, 2, 30, 19]], [2], 7)
    assert first["masks"].sum() == 20 * 40
    assert second["boxes"].shape == (0, 4)
    assert len(both["boxes"]) == 2


@pytest.mark.parametrize(
    ("boxes", "label", "said"),
    [
        ([[4, 4, 4, 9]], 1, r"image 1 of the batch, image_id 7: the box \[4.0, 4.0, 4.0, 9.0\] has no area; drop it"),
        ([[9, 4, 4, 9]], 1, "has no area; drop it or mend its order, which is left, top, right, bottom"),
        ([[0, 0, float("nan"), 9]], 1, "has no area"),
        ([[30, 4, 45, 9]], 1, r"the box \[30.0, 4.0, 45.0, 9.0\] leaves the image of 40 x 20 pixels; clip it"),
        ([[-3, 4, 5, 9]], 1, "leaves the image"),
        ([[1, 4, 5, 9]], 3, "the label 3 is none of 1..2, which num_classes allows; 0 is the background's"),
        ([[1, 4, 5, 9]], 0, "the label 0 is none of 1..2"),
    ],
)
def test_nonsense_is_told_with_image_and_box(boxes: list[list[float]], label: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        learnable_targets(IMAGES, [target([], []), target(boxes, [label], image_id=torch.tensor(7))], 2)


def test_a_crowd_may_be_as_it_is_and_edges_may_round() -> None:
    crowd = target([[4, 4, 4, 9]], [9], iscrowd=torch.tensor([1]))
    over = target([[-0.5, 0, 40.5, 20.5]], [1])

    assert [len(it["boxes"]) for it in learnable_targets(IMAGES, [crowd, over], 2)] == [0, 1]


def test_numbers_of_other_kinds_become_those_that_detectors_take() -> None:
    whole = {"boxes": torch.tensor([[1, 1, 5, 9]]), "labels": torch.tensor([2], dtype=torch.uint8)}
    nothing = {"boxes": torch.zeros(0, dtype=torch.float64), "labels": torch.zeros(0)}
    found = learnable_targets(IMAGES, [whole, nothing], 2)

    assert {(it["boxes"].dtype, it["labels"].dtype) for it in found} == {(torch.float32, torch.int64)}
    assert [tuple(it["boxes"].shape) for it in found] == [(1, 4), (0, 4)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (target([[1, 4, 5, 9]], [1, 2]), r"target 1 of the batch has boxes \(1, 4\) and labels \(2,\); give boxes"),
        ({"boxes": torch.zeros(4, 5), "labels": torch.ones(5)}, r"boxes \(4, 5\) and labels \(5,\)"),
        ({"labels": torch.ones(0)}, r"boxes None and labels \(0,\); give boxes \(N, 4\) and labels \(N,\)"),
    ],
)
def test_boxes_and_labels_that_do_not_belong_together_are_refused(wrong: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        learnable_targets(IMAGES, [target([], []), wrong], 2)


def test_a_batch_needs_a_target_for_each_image() -> None:
    with pytest.raises(ValueError, match="the batch has 2 images and 1 targets; give each image one"):
        learnable_targets(IMAGES, [target([], [])], 2)
