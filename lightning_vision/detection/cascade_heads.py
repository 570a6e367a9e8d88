"""The network of a cascade: a head a stage, each of which proposes boxes to the next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from .cascade_criterion import CascadeCriterion
from .cascade_detections import CascadeDetections
from .network import Target

__all__ = ["CascadeHead", "CascadeHeads"]


class CascadeHead(nn.Module):
    """One stage's head: what a box shows, and how it should move, alike for all classes.

    Args:
        features: Numbers that are pooled from a box.
        width: Of the two hidden layers.
        num_classes: K, the background not counted.

    Shape:
        `(P, C, h, w)` with C h w = `features` to logits `(P, K + 1)`, background first, and moves `(P, 4)`.
    """

    def __init__(self, features: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = TwoMLPHead(features, width)
        self.classes = nn.Linear(width, num_classes + 1)
        self.moves = nn.Linear(width, 4)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(pooled)
        # Boxes are measured in more digits than half precision has.
        return self.classes(hidden).float(), self.moves(hidden).float()


class CascadeHeads(nn.Module):
    """The stages of Cascade R-CNN, in the place of the `roi_heads` of one of torchvision's two-stage detectors.

    While training, each stage learns from boxes of its own choice, and what it makes of them is proposed to the next.
    In evaluation mode all boxes pass all stages.

    Args:
        pool: Pools what the maps show in a box.
        heads: One a stage.
        criteria: One a stage; their coders say what the heads' moves mean.
        detections: Makes detections of what the stages found.
    """

    def __init__(
        self,
        pool: MultiScaleRoIAlign,
        heads: Sequence[nn.Module],
        criteria: Sequence[CascadeCriterion],
        detections: CascadeDetections,
    ) -> None:
        super().__init__()
        self.pool, self.heads = pool, nn.ModuleList(heads)
        self.criteria, self.detections = tuple(criteria), detections

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections and no losses, or while training no detections and each stage's losses.

        Args:
            features: Maps of the pyramid by name, `(B, C, H, W)`.
            proposals: Boxes of each image, `(P, 4)`, pixels.
            image_sizes: Height and width of each image, pixels.
            targets: The objects of each image, for training.
        """
        if self.training and targets is not None:
            return [], self.losses(features, proposals, image_sizes, targets)
        logits, boxes = self.stages(features, proposals, image_sizes)
        return self.detections(logits, boxes[-1]), {}

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """`loss_classifier_1`, `loss_box_reg_1` and so on, a pair a stage, times the stages' weights."""
        losses: dict[str, Tensor] = {}
        for stage, (head, criterion) in enumerate(zip(self.heads, self.criteria, strict=True), 1):
            sample = criterion.sample(proposals, targets)
            logits, deltas = head(self.pool(features, sample.boxes, image_sizes))
            losses[f"loss_classifier_{stage}"], losses[f"loss_box_reg_{stage}"] = criterion.losses(
                logits, deltas, sample
            )
            moved = refined(criterion.coder, sample.boxes, deltas, image_sizes)
            # The next stage adds the objects itself; moved ones would be there twice.
            proposals = [boxes[proposed] for boxes, proposed in zip(moved, sample.proposed, strict=True)]
        return losses

    def stages(
        self, features: dict[str, Tensor], proposals: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]
    ) -> tuple[list[Tensor], list[list[Tensor]]]:
        """What each stage makes of the proposals: its logits `(P, K + 1)`, and its boxes `(P, 4)` an image."""
        all_logits: list[Tensor] = []
        boxes = [list(proposals)]
        for head, criterion in zip(self.heads, self.criteria, strict=True):
            logits, deltas = head(self.pool(features, boxes[-1], image_sizes))
            all_logits.append(logits)
            boxes.append(refined(criterion.coder, boxes[-1], deltas, image_sizes))
        return all_logits, boxes[1:]


@torch.no_grad()
def refined(
    coder: BoxCoder, boxes: Sequence[Tensor], deltas: Tensor, image_sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Boxes `(P, 4)` an image after their moves, `(P, 4)` of all images in a row, cut at the images' edges."""
    moved = coder.decode_single(deltas.detach(), torch.cat(list(boxes))).split([len(rows) for rows in boxes])
    return [clip_boxes_to_image(rows, size) for rows, size in zip(moved, image_sizes, strict=True)]
