"""Faster R-CNN and Mask R-CNN on the levels of any network."""

import math
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from .anchors import spread_sizes
from .network import DetectionNetwork, TorchvisionDetector
from .pyramid import Levels
from .settings import DetectorSettings

__all__ = ["PooledPyramid", "faster_rcnn", "mask_rcnn"]

RATIOS = (0.5, 1.0, 2.0)
CELLS = 7
# From one side of anchors to the next. A square half way between them overlaps both by its inverse, if in their middle.
WIDEST_STEP = 2.5


def faster_rcnn(
    levels: Levels,
    settings: DetectorSettings,
    proposals: int = 1000,
    boxes_per_image: int = 512,
    positive_fraction: float = 0.25,
) -> DetectionNetwork:
    """Faster R-CNN: boxes are proposed on all maps of a pyramid, then classified and moved (Ren et al. 2015).

    The hidden layers of the box head are four times as wide as the pyramid, torchvision's 1024 for its 256 channels.

    Args:
        levels: Maps of the backbone; strides beyond its coarsest are pooled, and looked at for proposals alone.
        settings: What all architectures are told.
        proposals: Boxes that are proposed in an image, at most; twice as many while training.
        boxes_per_image: Proposals that the box head learns from, an image, at most.
        positive_fraction: How many of them show an object, at most, 0..1.

    Raises:
        ValueError: the levels' strides do not double, or a number is out of its range.

    Reference: Ren et al. 2015, arXiv:1506.01497
    """
    heads = _head_settings(settings, boxes_per_image, positive_fraction)
    model = FasterRCNN(**proposal_settings(levels, settings, proposals), **heads)
    in_full_precision(model.rpn.head, model.roi_heads.box_predictor)
    return TorchvisionDetector(model, levels.strides[-1])


def mask_rcnn(
    levels: Levels,
    settings: DetectorSettings,
    proposals: int = 1000,
    boxes_per_image: int = 512,
    positive_fraction: float = 0.25,
) -> DetectionNetwork:
    """Mask R-CNN: Faster R-CNN that also draws the mask of each object it finds (He et al. 2017).

    Targets have `masks`, uint8 `(N, H, W)`, and detections `masks`, probabilities float `(D, 1, H, W)`.

    Args:
        levels: Maps of the backbone; strides beyond its coarsest are pooled, and looked at for proposals alone.
        settings: What all architectures are told.
        proposals: Boxes that are proposed in an image, at most; twice as many while training.
        boxes_per_image: Proposals that the heads learn from, an image, at most.
        positive_fraction: How many of them show an object, at most, 0..1.

    Raises:
        ValueError: the levels' strides do not double, or a number is out of its range; while training, a target has no
            masks.

    Reference: He et al. 2017, arXiv:1703.06870
    """
    channels = settings.pyramid_channels
    model = MaskRCNN(
        **proposal_settings(levels, settings, proposals),
        **_head_settings(settings, boxes_per_image, positive_fraction),
        mask_roi_pool=box_pool(levels, settings, 2 * CELLS),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, settings.num_classes + 1),
    )
    model.register_forward_pre_hook(_refuse_targets_without_masks)
    in_full_precision(model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor)
    return TorchvisionDetector(model, levels.strides[-1])


class PooledPyramid(nn.Module):
    """torchvision's feature pyramid on the levels of a network; coarser maps are every second place of the last.

    Args:
        levels: Gives maps fine to coarse.
        channels: Of every map of the pyramid.

    Raises:
        ValueError: a stride is not twice the one before.
    """

    def __init__(self, levels: Levels, channels: int) -> None:
        super().__init__()
        self.levels, self.out_channels = levels, channels
        self.strides = [*levels.strides, *levels.coarser]
        doubled = [levels.strides[0] * 2**place for place in range(len(self.strides))]
        if self.strides != doubled:
            raise ValueError(f"a two-stage detector needs strides that double, as {doubled}, not {self.strides}")
        self.fpn = FeaturePyramidNetwork(levels.channels, channels)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.fpn(self.levels(images))
        for _ in self.levels.coarser:
            maps[str(len(maps))] = F.max_pool2d(next(reversed(maps.values())), 1, 2)
        return maps


def proposal_settings(levels: Levels, settings: DetectorSettings, proposals: int) -> dict[str, Any]:
    """The arguments of torchvision's `FasterRCNN` up to its heads: maps, anchors that follow the image, pooling."""
    if proposals < 1:
        raise ValueError(f"proposals={proposals} must be at least 1")
    backbone = PooledPyramid(levels, settings.pyramid_channels)
    sizes = anchor_sizes(settings, len(backbone.strides))
    return {
        "backbone": backbone,
        "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        "rpn_pre_nms_top_n_train": 2 * proposals,
        "rpn_pre_nms_top_n_test": proposals,
        "rpn_post_nms_top_n_train": 2 * proposals,
        "rpn_post_nms_top_n_test": proposals,
        "box_roi_pool": box_pool(levels, settings, CELLS),
    }


def anchor_sizes(settings: DetectorSettings, maps: int) -> tuple[tuple[float, ...], ...]:
    """Sides of the anchors of each map, pixels, each at most `WIDEST_STEP` times the one before.

    One a map, as published, is enough for five maps and the default `object_sizes`. Fewer maps get more: anchors that
    overlap an object by less than 0.3 learn that it is background, and in a wide gap between two sizes all would.
    """
    smallest, largest = settings.object_sizes
    needed = 1 + math.log(largest / smallest, WIDEST_STEP)
    return tuple(spread_sizes(settings, maps, math.ceil(needed / maps)))


def check_sampling(boxes_per_image: int, positive_fraction: float) -> None:
    """Refuse numbers of boxes to learn from that are none."""
    if boxes_per_image < 1 or not 0 < positive_fraction <= 1:
        raise ValueError(
            f"boxes_per_image={boxes_per_image} and positive_fraction={positive_fraction}; the first must be at least "
            "1, the second above 0 and at most 1"
        )


def _head_settings(settings: DetectorSettings, boxes_per_image: int, positive_fraction: float) -> dict[str, Any]:
    check_sampling(boxes_per_image, positive_fraction)
    width = 4 * settings.pyramid_channels
    return {
        "box_head": TwoMLPHead(settings.pyramid_channels * CELLS**2, width),
        "box_predictor": FastRCNNPredictor(width, settings.num_classes + 1),
        "box_score_thresh": settings.score_threshold,
        "box_nms_thresh": settings.nms_threshold,
        "box_detections_per_img": settings.max_detections,
        "box_batch_size_per_image": boxes_per_image,
        "box_positive_fraction": positive_fraction,
    }


def box_pool(levels: Levels, settings: DetectorSettings, cells: int) -> MultiScaleRoIAlign:
    """What pools a box from the map of its size, `cells` across and down.

    Lin et al. 2017 (arXiv:1612.03144, Eq. 1) look at boxes of 224 pixels on the map of stride 16, in images of 800
    pixels, whose smallest anchor has 32 on the map of stride 4. Here these 224 pixels follow the smallest anchor, but
    not so far that a box has fewer places of its map than the 7 that are pooled.
    """
    smallest = spread_sizes(settings, len(levels.strides) + len(levels.coarser))[0][0]
    scale = max(112.0, 224 * (smallest / 32) / (levels.strides[0] / 4))
    names = [str(place) for place in range(len(levels.strides))]
    pool = MultiScaleRoIAlign(names, cells, 2, canonical_scale=round(scale))
    # torchvision takes strides for powers of two and guesses them, once, from its first images, which may be padded to
    # twice their size.
    pool.scales = [1 / stride for stride in levels.strides]
    finest, coarsest = (round(math.log2(stride)) for stride in (levels.strides[0], levels.strides[-1]))
    pool.map_levels = initLevelMapper(finest, coarsest, canonical_scale=round(scale))
    return pool


def in_full_precision(*layers: nn.Module) -> None:
    """Let what layers put out be float32 under autocast too: boxes are measured in more digits than half precision has.

    What they compute inside, and the names of their parameters, stay.
    """
    for layer in layers:
        layer.register_forward_hook(_full)


def _full(layer: nn.Module, given: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    return type(output)(_full(layer, given, part) for part in output)


def _refuse_targets_without_masks(model: nn.Module, given: tuple[Any, ...]) -> None:
    if model.training and len(given) > 1:
        for place, target in enumerate(given[1]):
            if "masks" not in target:
                raise ValueError(
                    f"mask_rcnn learns to draw masks and target {place} of the batch has none; give a datamodule with "
                    "masks=True, or take faster_rcnn"
                )
