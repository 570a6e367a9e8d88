"""RetinaNet on any levels, with anchors that follow the image."""

from collections.abc import Sequence
from functools import partial

from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from .anchors import spread_sizes
from .network import DetectionNetwork, TorchvisionDetector
from .pyramid import Levels, Pyramid, check_groups
from .settings import DetectorSettings

__all__ = ["retinanet"]


def retinanet(
    levels: Levels,
    settings: DetectorSettings,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    fg_iou_thresh: float = 0.5,
    bg_iou_thresh: float = 0.4,
    topk_candidates: int = 1000,
) -> DetectionNetwork:
    """RetinaNet: anchors of three sizes a map say class and offsets, taught by the focal loss.

    Head and box loss are those of torchvision's second version, with group norms and the generalised overlap.

    Args:
        levels: Maps of a network.
        settings: What all architectures are told.
        aspect_ratios: Height over width of the anchors of each size.
        fg_iou_thresh: An anchor that overlaps an object by at least so much learns it.
        bg_iou_thresh: One that overlaps all by less learns the background; between the two nothing is learnt.
        topk_candidates: At most so many detections a map reach the suppression of doubles.

    Raises:
        ValueError: the pyramid's channels are no multiple of 32, the groups of the head's norms, or a number is out of
            its range.

    Reference: Lin et al. 2017, arXiv:1708.02002

    BibTeX:
        @inproceedings{lin2017focal,
          title = {Focal Loss for Dense Object Detection},
          author = {Lin, Tsung-Yi and Goyal, Priya and Girshick, Ross and He, Kaiming and Dollar, Piotr},
          booktitle = {Proceedings of the IEEE International Conference on Computer Vision},
          pages = {2980--2988},
          year = {2017},
          eprint = {1708.02002},
          archivePrefix = {arXiv},
        }
    """
    check_groups(settings)
    if not 0 <= bg_iou_thresh <= fg_iou_thresh <= 1:
        raise ValueError(
            f"bg_iou_thresh={bg_iou_thresh} and fg_iou_thresh={fg_iou_thresh} are no overlaps of which the first is at "
            "most the second"
        )
    if topk_candidates < 1 or min(aspect_ratios, default=0) <= 0:
        raise ValueError(
            f"topk_candidates={topk_candidates} and all of aspect_ratios={list(aspect_ratios)} must be above 0"
        )
    backbone = Pyramid(levels, settings.pyramid_channels)
    sides = tuple(spread_sizes(settings, len(backbone.strides), 3))
    anchors = AnchorGenerator(sides, (tuple(aspect_ratios),) * len(sides))
    head = RetinaNetHead(
        backbone.out_channels,
        anchors.num_anchors_per_location()[0],
        settings.num_classes + 1,
        norm_layer=partial(nn.GroupNorm, 32),
    )
    head.regression_head._loss_type = "giou"  # torchvision's only way to say so
    model = RetinaNet(
        backbone,
        settings.num_classes + 1,
        anchor_generator=anchors,
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.max_detections,
        fg_iou_thresh=fg_iou_thresh,
        bg_iou_thresh=bg_iou_thresh,
        topk_candidates=topk_candidates,
    )
    return TorchvisionDetector(model, levels.strides[-1])
