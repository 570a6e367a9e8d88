"""Localisation: boxes around the largest part of a map, by hand, and their overlap with the true ones."""

import pytest
import torch

from lightning_vision.explain import localisation_boxes, localisation_iou


def two_parts():
    maps = torch.zeros(1, 10, 12)
    maps[0, 1:4, 2:7] = 0.5  # fifteen pixels
    maps[0, 6:9, 9:11] = 1.0  # six, with the maximum
    return maps


def test_the_box_is_around_the_largest_part_above_the_threshold():
    assert localisation_boxes(two_parts(), 0.2).tolist() == [[2, 1, 7, 4]]
    assert localisation_boxes(two_parts(), 0.6).tolist() == [[9, 6, 11, 9]]


def test_pixels_hang_together_across_corners():
    maps = torch.zeros(1, 6, 6)
    maps[0, 1:3, 1:3] = maps[0, 3, 3] = 1

    assert localisation_boxes(maps).tolist() == [[1, 1, 4, 4]]


def test_an_empty_map_gives_the_whole_image():
    assert localisation_boxes(torch.zeros(2, 6, 8)).tolist() == [[0, 0, 8, 6]] * 2


def test_row_53_overlap_worked_out_by_hand():
    # Its box, 5 by 3, and the true one, 5 by 3 two columns on, share 3 by 3 of 21 pixels.
    boxes = torch.tensor([[4, 1, 9, 4]])

    assert localisation_iou(two_parts(), boxes).item() == pytest.approx(9 / 21)
    assert localisation_iou(two_parts(), torch.tensor([[2, 1, 7, 4]])).item() == 1
    assert localisation_iou(two_parts(), torch.tensor([[0, 5, 3, 9]])).item() == 0


def test_each_image_has_a_box_of_its_own():
    maps = torch.cat([two_parts(), two_parts().flip(2)])

    assert localisation_iou(maps, torch.tensor([[2, 1, 7, 4], [5, 1, 10, 4]])).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("boxes", "threshold", "message"),
    [
        (torch.zeros(2, 4), 0.2, r"boxes are \(2, 4\) for 1 maps; give \(B, 4\), one an image"),
        (torch.zeros(1, 4), 1.5, "threshold is 1.5; give a share of the maximum"),
    ],
)
def test_what_does_not_fit_is_refused(boxes, threshold, message):
    with pytest.raises(ValueError, match=message):
        localisation_iou(two_parts(), boxes, threshold)
