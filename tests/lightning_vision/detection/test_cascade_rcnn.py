"""Settings of Cascade R-CNN reach its stages; the stages are proved in `test_cascade_heads.py`."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from lightning_vision.detection.architectures import build_detector
from lightning_vision.detection.cascade_heads import CascadeHeads
from lightning_vision.detection.coco_metric import CocoMAP
from lightning_vision.detection.network import DetectionNetwork
from lightning_vision.detection.settings import DetectorSettings
from support.shapes import shapes


def _heads(**options: Any) -> CascadeHeads:
    settings = DetectorSettings(3, (64, 64), (0.1, 0.6), 8, 0.2, 0.4, 7)
    heads = build_detector("cascade_rcnn", "test_resnet", settings, strides=[8, 16], options=options).model.roi_heads
    assert isinstance(heads, CascadeHeads)
    return heads


def test_the_stages_are_the_papers() -> None:
    stages = _heads().criteria

    assert [stage.matcher.high_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.matcher.low_threshold for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage.coder.weights for stage in stages] == [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)]
    assert [stage.loss_weight for stage in stages] == [1.0, 0.5, 0.25]


def test_settings_reach_the_stages() -> None:
    heads = _heads(
        iou_thresholds=[0.4, 0.8],
        stage_weights=[2, 1],
        coder_weights=[[1, 2, 3, 4], [5, 6, 7, 8]],
        boxes_per_image=20,
        positive_fraction=0.3,
    )
    first, second = heads.criteria
    positive, negative = second.sampler([torch.cat([torch.ones(50), torch.zeros(50)])])

    assert (first.matcher.high_threshold, first.coder.weights, first.loss_weight) == (0.4, (1, 2, 3, 4), 2)
    assert (second.matcher.high_threshold, second.coder.weights, second.loss_weight) == (0.8, (5, 6, 7, 8), 1)
    assert (int(positive[0].sum()), int(negative[0].sum())) == (6, 14)
    assert tuple(vars(heads.detections).values()) == (0.2, 0.4, 7)
    assert [tuple(head.classes.weight.shape) for head in heads.heads] == [(4, 32), (4, 32)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iou_thresholds": [0.5, 0.6]}, "one of each for every stage"),
        ({"iou_thresholds": [], "stage_weights": [], "coder_weights": []}, "at least one stage"),
        ({"iou_thresholds": [0.5, 0.5, 0.7]}, "must ascend"),
        ({"iou_thresholds": [0.7, 0.6, 0.5]}, "must ascend"),
        ({"iou_thresholds": [0.0, 0.6, 0.7]}, "above 0"),
        ({"iou_thresholds": [0.5, 0.6, 1.1]}, "at most 1"),
        ({"iou_thresholds": 0.5}, "iou_thresholds=0.5 is no list"),
        ({"coder_weights": [10, 10, 5]}, "four numbers above 0, not 10"),
        ({"stage_weights": [1, -1, 0]}, "must not be negative"),
        ({"coder_weights": [[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15]]}, r"not \[30, 30, 15\]"),
        ({"coder_weights": [[10, 10, 5, 5], [20, 20, 10, 10], [30, 30, 15, 0]]}, "above 0"),
        ({"iou_treshold": 0.5}, "did you mean iou_thresholds"),
    ],
)
def test_stages_that_make_no_cascade_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _heads(**options)


def test_training_and_use_go_through_the_stages() -> None:
    settings = DetectorSettings(3, (64, 64), (0.1, 0.6), 8)
    network = build_detector("cascade_rcnn", "test_resnet", settings, strides=[8, 16])
    target: dict[str, Tensor] = {"boxes": torch.tensor([[0.0, 0, 32, 32]]), "labels": torch.tensor([2])}
    losses = network.losses(torch.randn(1, 3, 64, 64), [target])
    expected = [f"loss_{term}_{stage}" for stage in (1, 2, 3) for term in ("classifier", "box_reg")]

    assert [*expected, "loss_objectness", "loss_rpn_box_reg"] == list(losses)
    assert len(network.eval()(torch.randn(2, 3, 64, 64))) == 2


def _precision(network: DetectionNetwork, images: Tensor, targets: list[dict[str, Tensor]]) -> float:
    metric = CocoMAP(2)
    metric.update(network.eval()(images), targets)
    return float(metric.compute()["map"])


def test_row_147_the_whole_detector_learns_four_images_by_heart() -> None:
    torch.manual_seed(0)
    images, targets = shapes(4, 48)
    settings = DetectorSettings(2, (48, 48), (0.1, 0.6), 24)
    options = {"proposals": 48, "boxes_per_image": 24}
    network = build_detector("cascade_rcnn", "plain8", settings, strides=[4, 8], options=options)
    before = _precision(network, images, targets)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), 0.006)
    schedule = OneCycleLR(optimizer, 0.006, total_steps=50, pct_start=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        torch.stack(list(network.losses(images, targets).values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()

    assert before < 0.1
    assert _precision(network, images, targets) > 0.8
