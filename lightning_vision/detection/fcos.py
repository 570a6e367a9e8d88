"""FCOS on any levels, with ranges of regression that follow the image."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

from .anchors import spread_sizes
from .network import DetectionNetwork, TorchvisionDetector
from .pyramid import Levels, Pyramid, check_groups
from .settings import DetectorSettings

__all__ = ["assign_points", "fcos"]


def fcos(
    levels: Levels,
    settings: DetectorSettings,
    center_sampling_radius: float = 1.5,
    num_convs: int = 4,
    topk_candidates: int = 1000,
) -> DetectionNetwork:
    """FCOS: each place of a map tells the class, the distances to the box's sides and how central it is.

    A place learns from the object whose sides are within its map's range; the ranges meet in the geometric middle
    between the largest object of a map and the smallest of the next (`spread_sizes`, three a level).

    Args:
        levels: Maps of a network.
        settings: What all architectures are told.
        center_sampling_radius: Places up to so many strides from an object's centre learn from it.
        num_convs: Layers before each of the head's answers.
        topk_candidates: At most so many detections a map reach the suppression of doubles.

    Raises:
        ValueError: the pyramid's channels are no multiple of 32, the groups of the head's norms, or a number is out of
            its range.

    Reference: Tian et al. 2019, arXiv:1904.01355

    BibTeX:
        @inproceedings{tian2019fcos,
          title = {FCOS: Fully Convolutional One-Stage Object Detection},
          author = {Tian, Zhi and Shen, Chunhua and Chen, Hao and He, Tong},
          booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
          pages = {9627--9636},
          year = {2019},
          eprint = {1904.01355},
          archivePrefix = {arXiv},
        }

    Differs from the paper:
        Ranges of regression follow the objects' sizes instead of the maps' strides; with torchvision's ranges the
        losses are torchvision's.
    """
    check_groups(settings)
    if center_sampling_radius <= 0 or num_convs < 1 or topk_candidates < 1:
        raise ValueError(
            f"center_sampling_radius={center_sampling_radius}, num_convs={num_convs} and "
            f"topk_candidates={topk_candidates} must be above 0"
        )
    backbone = Pyramid(levels, settings.pyramid_channels)
    anchors = AnchorGenerator(tuple((stride,) for stride in backbone.strides), ((1.0,),) * len(backbone.strides))
    model = RangedFCOS(
        backbone,
        settings.num_classes + 1,
        anchor_generator=anchors,
        head=FCOSHead(backbone.out_channels, 1, settings.num_classes + 1, num_convs),
        center_sampling_radius=center_sampling_radius,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_threshold,
        detections_per_img=settings.max_detections,
        topk_candidates=topk_candidates,
    )
    sides = spread_sizes(settings, len(backbone.strides), 3)
    model.bounds = [(finer[-1] * coarser[0]) ** 0.5 for finer, coarser in pairwise(sides)]
    return TorchvisionDetector(model, levels.strides[-1])


def assign_points(
    points: Tensor, strides: Tensor, ranges: tuple[Tensor, Tensor], boxes: Tensor, radius: float
) -> Tensor:
    """Which object each place of a pyramid learns from (Tian et al. 2019, section 3.2, with centre sampling).

    Args:
        points: Places `(P, 2)`, across and down, pixels.
        strides: Of the map of each place `(P,)`, pixels.
        ranges: Lower and upper bound `(P,)` of the distance to an object's farthest side, pixels.
        boxes: Objects `(N, 4)`, left, top, right, bottom, pixels.
        radius: Places up to so many strides from an object's centre learn from it.

    Returns:
        Row of `boxes`, the smallest of those that fit, or -1, int64 `(P,)`.
    """
    if not len(boxes):
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = (points[:, None] - centres).abs().amax(2) < radius * strides[:, None]
    distances = torch.cat([points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]], 2)
    farthest = distances.amax(2)
    fits = near & (distances.amin(2) > 0) & (farthest > ranges[0][:, None]) & (farthest < ranges[1][:, None])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1).expand(len(points), -1).masked_fill(~fits, torch.inf)
    smallest, chosen = areas.min(1)
    return chosen.masked_fill(smallest == torch.inf, -1)


class RangedFCOS(FCOS):
    """torchvision's FCOS, whose maps share the objects out at bounds of ours instead of multiples of their strides."""

    bounds: Sequence[float]

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        num_anchors_per_level: list[int],
    ) -> dict[str, Tensor]:
        places = anchors[0]
        points, strides = (places[:, :2] + places[:, 2:]) / 2, places[:, 2] - places[:, 0]
        counts = torch.tensor(num_anchors_per_level, device=places.device)
        lower, upper = (
            torch.tensor(bounds, device=places.device).repeat_interleave(counts, output_size=len(places))
            for bounds in ([0.0, *self.bounds], [*self.bounds, torch.inf])
        )
        matched = [
            assign_points(points, strides, (lower, upper), target["boxes"], self.center_sampling_radius)
            for target in targets
        ]
        losses: dict[str, Tensor] = self.head.compute_loss(targets, head_outputs, anchors, matched)
        return losses
