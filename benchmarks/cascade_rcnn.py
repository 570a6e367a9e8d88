"""What two more stages cost: a training step and detections of Cascade R-CNN beside torchvision's Faster R-CNN."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from lightning_vision.detection.anchors import spread_sizes
from lightning_vision.detection.architectures import build_detector
from lightning_vision.detection.network import TorchvisionDetector
from lightning_vision.detection.pyramid import TimmLevels
from lightning_vision.detection.settings import DetectorSettings
from lightning_vision.detection.two_stage import PooledPyramid, box_pool

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

SIDE, CHANNELS, BOXES, PROPOSALS = 128, 64, 64, 300
SETTINGS = DetectorSettings(10, (SIDE, SIDE), (0.11, 0.44), CHANNELS)
STRIDES = [8, 16, 32]


def rows(quick: bool) -> list[Row]:
    """Train and use torchvision's detector and cascades of one and of three stages, on one backbone and alike images.

    Args:
        quick: One repetition on one image.
    """
    images, repetitions, warmup = (1, 1, 0) if quick else (4, 11, 1)
    one = {"iou_thresholds": [0.5], "stage_weights": [1.0], "coder_weights": [[10.0, 10.0, 5.0, 5.0]]}
    makers: dict[str, Callable[[], Any]] = {
        "torchvision": _torchvisions,
        "one stage": lambda: _ours(one),
        "three stages": lambda: _ours({}),
    }
    batch, targets = _batch(images)
    networks = {name: make() for name, make in makers.items()}
    training = {name: _training(network, batch, targets) for name, network in networks.items()}
    steps = take_turns(training, repetitions, warmup)
    found = take_turns({name: _using(network, batch) for name, network in networks.items()}, repetitions, warmup)
    table = []
    for what, times in (("training step", steps), ("detections", found)):
        for stages in ("one stage", "three stages"):
            ours, theirs = times[stages]["cpu"], times["torchvision"]["cpu"]
            table.append(Row.slowdown(f"{what}, {stages}", "torchvision's `FasterRCNN`", ours, theirs, "cpu"))
    return table


def _ours(options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    options = {"proposals": PROPOSALS, "boxes_per_image": BOXES, **options}
    return build_detector("cascade_rcnn", "test_resnet", SETTINGS, STRIDES, options=options)


def _torchvisions() -> nn.Module:
    torch.manual_seed(0)
    levels = TimmLevels("test_resnet", STRIDES)
    sizes = tuple(spread_sizes(SETTINGS, len(STRIDES)))
    model = FasterRCNN(
        PooledPyramid(levels, CHANNELS),
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_train=2 * PROPOSALS,
        rpn_pre_nms_top_n_test=PROPOSALS,
        rpn_post_nms_top_n_train=2 * PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_roi_pool=box_pool(levels, SETTINGS, 7),
        box_head=TwoMLPHead(CHANNELS * 49, 4 * CHANNELS),
        box_predictor=FastRCNNPredictor(4 * CHANNELS, SETTINGS.num_classes + 1),
        box_batch_size_per_image=BOXES,
    )
    return TorchvisionDetector(model)


def _batch(images: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Noise with four boxes an image."""
    random = torch.Generator().manual_seed(0)
    left_top = 90 * torch.rand(images, 4, 2, generator=random)
    boxes = torch.cat([left_top, left_top + 14 + 24 * torch.rand(images, 4, 2, generator=random)], 2)
    labels = torch.randint(1, SETTINGS.num_classes + 1, (images, 4), generator=random)
    targets = [{"boxes": own, "labels": classes} for own, classes in zip(boxes, labels, strict=True)]
    return torch.randn(images, 3, SIDE, SIDE, generator=random), targets


def _training(network: nn.Module, batch: Tensor, targets: list[dict[str, Tensor]]) -> Side:
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.stack(list(network.losses(batch, targets).values())).sum().backward()
        optimizer.step()

    def prepare() -> Callable[[], None]:
        network.train()
        return step

    return prepare


def _using(network: nn.Module, batch: Tensor) -> Side:
    def prepare() -> Callable[[], Any]:
        network.eval()
        return torch.inference_mode()(lambda: network.detect(batch))

    return prepare
