"""SSD on any levels, with default boxes that follow the image."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from .network import DetectionNetwork, TorchvisionDetector
from .pyramid import Levels
from .settings import DetectorSettings

__all__ = ["ExtendedLevels", "default_boxes", "ssd", "ssd_network"]


def ssd(
    levels: Levels,
    settings: DetectorSettings,
    aspect_ratios: Sequence[Sequence[float]] | None = None,
    iou_thresh: float = 0.5,
    neg_to_pos_ratio: float = 3.0,
    topk_candidates: int = 400,
) -> DetectionNetwork:
    """SSD: default boxes of several shapes in each place of each map say class and offsets.

    Args:
        levels: Maps of a network.
        settings: What all architectures are told.
        aspect_ratios: For each map the shapes beside squares, width over height, each with its inverse; None is the
            paper's: 2 for the first and the last two maps, 2 and 3 between them.
        iou_thresh: A default box that overlaps an object by at least so much learns it, beside the best of each object.
        neg_to_pos_ratio: Boxes that learn the background for each that learns an object, those with the largest loss.
        topk_candidates: At most so many detections a class reach the suppression of doubles.

    Raises:
        ValueError: there is not a list of shapes for each map, no map of a stride can be added, or a number is out of
            its range.

    Example:
        >>> from lightning_vision.detection import TimmLevels
        >>> levels = TimmLevels("test_resnet", [8, 16])
        >>> network = ssd(levels, DetectorSettings(3, (64, 64))).eval()
        >>> sorted(network(torch.zeros(1, 3, 64, 64))[0])
        ['boxes', 'labels', 'scores']

    Reference: Liu et al. 2016, arXiv:1512.02325

    BibTeX:
        @inproceedings{liu2016ssd,
          title = {SSD: Single Shot MultiBox Detector},
          author = {Liu, Wei and Anguelov, Dragomir and Erhan, Dumitru and Szegedy, Christian and Reed, Scott and Fu,
                    Cheng-Yang and Berg, Alexander C.},
          booktitle = {European Conference on Computer Vision},
          pages = {21--37},
          year = {2016},
          eprint = {1512.02325},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Maps are those of any network, not VGG-16's, and the first is not scaled to a norm of 20. The sizes of default
        boxes follow the objects' (`default_boxes`).

    See also:
        `ssdlite`, which does the same with separable convolutions.
    """
    backbone = ExtendedLevels(levels, settings, smaller)
    last = len(backbone.strides) - 2
    shapes = aspect_ratios or [[2] if not 0 < number < last else [2, 3] for number in range(len(backbone.strides))]
    boxes = default_boxes(settings, backbone.strides, shapes)
    channels, number = backbone.out_channels, boxes.num_anchors_per_location()
    head = SSDHead(channels, number, settings.num_classes + 1)
    return ssd_network(backbone, boxes, head, settings, iou_thresh, neg_to_pos_ratio, topk_candidates)


def ssd_network(
    backbone: "ExtendedLevels",
    boxes: DefaultBoxGenerator,
    head: nn.Module,
    settings: DetectorSettings,
    iou_thresh: float,
    neg_to_pos_ratio: float,
    topk_candidates: int,
) -> TorchvisionDetector:
    """torchvision's SSD of maps, default boxes and a head.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 0 < iou_thresh <= 1:
        raise ValueError(f"iou_thresh={iou_thresh} is outside (0, 1]; give an overlap")
    if neg_to_pos_ratio < 0:
        raise ValueError(f"neg_to_pos_ratio={neg_to_pos_ratio} is below 0; the paper's is 3")
    if topk_candidates < 1:
        raise ValueError(f"topk_candidates={topk_candidates} is below 1; give at least 1")
    model = SSD(
        backbone,
        boxes,
        settings.image_size,
        settings.num_classes + 1,
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.max_detections,
        iou_thresh=iou_thresh,
        topk_candidates=topk_candidates,
        positive_fraction=1 / (1 + neg_to_pos_ratio),
    )
    # Default boxes stand in the middle of cells, however many there are, so nothing is padded.
    return TorchvisionDetector(model, 1)


def default_boxes(
    settings: DetectorSettings, strides: Sequence[int], aspect_ratios: Sequence[Sequence[float]]
) -> DefaultBoxGenerator:
    """Default boxes of each map: a square of its size, one halfway to the next map's, and for each shape two more.

    The first map has the smallest object's size, the second twice as much, and from there sizes are evenly spaced up to
    the largest, as in the paper's Eq. 4 (its section 3.3 gives the first map half the smallest size for COCO). From
    0.07 to 1.05 six maps get 0.07, 0.14, 0.32, ..., 1.05; the published ones are 0.07, 0.15, 0.33, ..., 1.05.

    Args:
        settings: Says how large objects are, fractions of the shorter side.
        strides: Of the maps.
        aspect_ratios: For each map the shapes beside squares, width over height.

    Raises:
        ValueError: there is not a list of shapes, all above 0, for each map.
    """
    if len(aspect_ratios) != len(strides):
        raise ValueError(f"aspect_ratios has {len(aspect_ratios)} lists, there are {len(strides)} maps; give each one")
    if any(shape <= 0 for shapes in aspect_ratios for shape in shapes):
        raise ValueError(f"aspect_ratios={[list(shapes) for shapes in aspect_ratios]} must all be above 0")
    smallest, largest = settings.object_sizes
    more = len(strides) - 1
    second = min(2 * smallest, smallest + (largest - smallest) / len(strides))
    scales = [smallest, *(second + (largest - second) * step / more for step in range(more)), largest]
    boxes = DefaultBoxGenerator([list(shapes) for shapes in aspect_ratios], scales=scales)
    # torchvision's sizes are fractions of each side: squares of an image that is none would be none.
    height, width = settings.image_size
    of_sides = torch.tensor([min(height, width) / width, min(height, width) / height])
    boxes._wh_pairs = [pairs * of_sides for pairs in boxes._wh_pairs]
    return boxes


class ExtendedLevels(nn.Module):
    """Maps of a network and, made of its last, coarser ones.

    A map of stride s has ceil(side / s) cells a side. A layer halves the cells of the map before, rounded up, or, where
    that is one too many, as from three cells to SSD300's last one, without padding, rounded down.

    Args:
        levels: Maps of a network.
        settings: Has the image's size, and the channels of the maps that are added.
        layer: Makes a layer from channels, channels and padding.

    Raises:
        ValueError: a layer cannot give as many cells as a stride says.
    """

    def __init__(self, levels: Levels, settings: DetectorSettings, layer: Callable[[int, int, int], nn.Module]) -> None:
        super().__init__()
        self.levels, self.strides = levels, [*levels.strides, *levels.coarser]
        self.out_channels = [*levels.channels, *(settings.pyramid_channels for _ in levels.coarser)]
        self.extra = nn.ModuleList()
        channels = levels.channels[-1]
        for finer, coarser in pairwise(self.strides[len(levels.strides) - 1 :]):
            before, wanted = ([math.ceil(side / it) for side in settings.image_size] for it in (finer, coarser))
            padded, unpadded = [math.ceil(cells / 2) for cells in before], [(cells - 1) // 2 for cells in before]
            if wanted not in (padded, unpadded) or min(wanted) < 1:
                raise ValueError(
                    f"a map of {before} cells is followed by one of {padded} or {unpadded}, not of the {wanted} that "
                    f"stride {coarser} has; mend strides"
                )
            self.extra.append(layer(channels, settings.pyramid_channels, int(wanted == padded)))
            channels = settings.pyramid_channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.levels(images)
        for layer in self.extra:
            maps[str(len(maps))] = layer(next(reversed(maps.values())))
        return maps


def smaller(channels: int, wanted: int, padding: int) -> nn.Module:
    """SSD's layer from a map to the next, `(B, channels, H, W)` to `(B, wanted, ..., ...)`."""
    between, after = nn.Conv2d(channels, wanted // 2, 1), nn.Conv2d(wanted // 2, wanted, 3, 2, padding)
    for layer in (between, after):
        for parameter in layer.parameters():
            nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return nn.Sequential(between, nn.ReLU(), after, nn.ReLU())
