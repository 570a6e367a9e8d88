"""SSDlite on any levels: SSD with separable convolutions, for small devices."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation

from .network import DetectionNetwork
from .pyramid import Levels
from .settings import DetectorSettings
from .ssd import ExtendedLevels, default_boxes, ssd_network

__all__ = ["ssdlite"]

NORM = nn.BatchNorm2d


def ssdlite(
    levels: Levels,
    settings: DetectorSettings,
    aspect_ratios: Sequence[Sequence[float]] | None = None,
    iou_thresh: float = 0.5,
    neg_to_pos_ratio: float = 3.0,
    topk_candidates: int = 300,
) -> DetectionNetwork:
    """SSDlite: SSD whose added maps and head are made of separable convolutions.

    Args:
        levels: Maps of a network.
        settings: What all architectures are told.
        aspect_ratios: For each map the shapes beside squares, width over height; None is 2 and 3 for all.
        iou_thresh: A default box that overlaps an object by at least so much learns it, beside the best of each object.
        neg_to_pos_ratio: Boxes that learn the background for each that learns an object, those with the largest loss.
        topk_candidates: At most so many detections a class reach the suppression of doubles.

    Raises:
        ValueError: there is not a list of shapes for each map, no map of a stride can be added, or a number is out of
            its range.

    Reference: Sandler et al. 2018, arXiv:1801.04381
    """
    backbone = ExtendedLevels(levels, settings, smaller)
    boxes = default_boxes(settings, backbone.strides, aspect_ratios or [[2, 3]] * len(backbone.strides))
    number = boxes.num_anchors_per_location()
    head = SSDLiteHead(backbone.out_channels, number, settings.num_classes + 1, NORM)
    return ssd_network(backbone, boxes, head, settings, iou_thresh, neg_to_pos_ratio, topk_candidates)


def smaller(channels: int, wanted: int, padding: int) -> nn.Module:
    """SSDlite's layer from a map to the next, `(B, channels, H, W)` to `(B, wanted, ..., ...)`."""
    layer = partial(Conv2dNormActivation, norm_layer=NORM, activation_layer=nn.ReLU6)
    block = nn.Sequential(
        layer(channels, wanted // 2, 1),
        layer(wanted // 2, wanted // 2, 3, 2, padding, groups=wanted // 2),
        layer(wanted // 2, wanted, 1),
    )
    for it in block.modules():
        if isinstance(it, nn.Conv2d):
            nn.init.normal_(it.weight, std=0.03)
    return block
