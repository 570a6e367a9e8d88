"""From stages to detections, by hand."""

import torch

from lightning_vision.detection.cascade_detections import CascadeDetections, averaged_scores

# Probabilities of background and two classes, of three boxes, by two stages.
FIRST = torch.tensor([[0.2, 0.6, 0.2], [0.1, 0.8, 0.1], [0.98, 0.01, 0.01]])
SECOND = torch.tensor([[0.4, 0.2, 0.4], [0.3, 0.6, 0.1], [0.98, 0.01, 0.01]])
BOXES = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 20.0, 30.0, 30.0]])


def test_scores_are_the_mean_of_all_stages_and_not_the_last_ones() -> None:
    expected = torch.tensor([[0.4, 0.3], [0.7, 0.1], [0.01, 0.01]])
    found = averaged_scores([FIRST.log(), SECOND.log()])

    torch.testing.assert_close(found, expected)
    assert not torch.allclose(averaged_scores([SECOND.log()]), expected)


def test_detections_are_those_above_the_threshold_that_no_better_one_of_their_class_covers() -> None:
    (found,) = CascadeDetections(0.05, 0.5, 100)([FIRST.log(), SECOND.log()], [BOXES])

    # Of class 1 the second box is better than the first, which it covers by 0.9; of class 2 the first is.
    torch.testing.assert_close(found["scores"], torch.tensor([0.7, 0.3]))
    assert found["labels"].tolist() == [1, 2]
    assert torch.equal(BOXES[[1, 0]], found["boxes"])


def test_thresholds_are_kept() -> None:
    logits = [FIRST.log(), SECOND.log()]

    assert _scores(CascadeDetections(0.05, 0.95, 100), logits) == [0.7, 0.4, 0.3, 0.1]
    assert _scores(CascadeDetections(0.35, 0.95, 100), logits) == [0.7, 0.4]
    assert _scores(CascadeDetections(0.05, 0.5, 1), logits) == [0.7]


def _scores(detections: CascadeDetections, logits: list[torch.Tensor]) -> list[float]:
    return [round(float(score), 4) for score in detections(logits, [BOXES])[0]["scores"]]


def test_images_keep_their_own_boxes_and_those_without_area_are_dropped() -> None:
    flat = torch.tensor([[3.0, 3.0, 3.0, 8.0]])
    found = CascadeDetections(0.05, 0.5, 100)([FIRST.log(), SECOND.log()], [BOXES[:2], flat])

    assert [len(image["boxes"]) for image in found] == [2, 0]
