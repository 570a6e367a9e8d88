"""What a stage of a cascade learns from: boxes matched at its own overlap, sampled, and the loss on them.

Cai and Vasconcelos 2018, arXiv:1712.00726, Section 4.2: L = L_cls(h_t(x), y) + [y >= 1] L_loc(f_t(x, b), g), the class
y of a box b being that of the object g it overlaps by u_t or more, and 0 elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou

from .network import Target

__all__ = ["CascadeCriterion", "CascadeSample"]

Sampler = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


@dataclass(frozen=True)
class CascadeSample:
    """Boxes that a stage learns from, one tensor an image, P rows each.

    Args:
        boxes: float `(P, 4)`, left, top, right, bottom, pixels.
        labels: int64 `(P,)`: the class of the matched object, 1..K, or 0 for background.
        deltas: float `(P, 4)`: how the matched object lies to the box, in the units of the stage's coder; without
            meaning for background.
        proposed: bool `(P,)`: whether the stage before proposed the box; the others are objects that were added.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    deltas: list[Tensor]
    proposed: list[Tensor]


class CascadeCriterion:
    """The loss of one stage of Cascade R-CNN: match proposals at its own overlap, sample, classify and regress.

    Proposals and the objects themselves are candidates, as in Faster R-CNN. With one stage at 0.5 all of it is what
    torchvision's `RoIHeads` does.

    Args:
        iou_threshold: u, the intersection over union from which on a box shows its object, above 0 and at most 1.
        coder_weights: What a move across, down, in log width and in log height is multiplied by, above 0.
        loss_weight: Factor on both terms.
        sampler: Chooses candidates by their labels, a tensor an image, 0 for background: which positive and which
            negative ones, as masks; torchvision's `BalancedPositiveNegativeSampler`, which draws from torch's global
            stream, or a function with draws of its own.
    """

    def __init__(
        self, iou_threshold: float, coder_weights: Sequence[float], loss_weight: float, sampler: Sampler
    ) -> None:
        across, down, width, height = coder_weights
        self.matcher = Matcher(iou_threshold, iou_threshold)
        self.coder = BoxCoder((across, down, width, height))
        self.loss_weight = loss_weight
        self.sampler = sampler

    @torch.no_grad()
    def sample(self, proposals: Sequence[Tensor], targets: Sequence[Target]) -> CascadeSample:
        """The boxes to learn from, of proposals `(P, 4)` an image and its objects."""
        truths = [target["boxes"].to(boxes.dtype) for boxes, target in zip(proposals, targets, strict=True)]
        candidates = [torch.cat(pair) for pair in zip(proposals, truths, strict=True)]
        matched = [
            self._match(boxes, truth, target["labels"])
            for boxes, truth, target in zip(candidates, truths, targets, strict=True)
        ]
        chosen = [
            torch.where(positive | negative)[0]
            for positive, negative in zip(*self.sampler([labels for labels, _ in matched]), strict=True)
        ]
        boxes = [boxes[rows] for boxes, rows in zip(candidates, chosen, strict=True)]
        return CascadeSample(
            boxes,
            [labels[rows] for (labels, _), rows in zip(matched, chosen, strict=True)],
            list(self.coder.encode([objects[rows] for (_, objects), rows in zip(matched, chosen, strict=True)], boxes)),
            [rows < len(offered) for offered, rows in zip(proposals, chosen, strict=True)],
        )

    def _match(self, boxes: Tensor, truth: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The class `(P,)` of each candidate and the object `(P, 4)` it should move to."""
        if not len(truth):
            return torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device), boxes
        match = self.matcher(box_iou(truth, boxes))
        return torch.where(match >= 0, labels[match.clamp(min=0)], 0), truth[match.clamp(min=0)]

    def losses(self, logits: Tensor, deltas: Tensor, sample: CascadeSample) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all boxes, and smooth L1 of those that show an object, both over the number of boxes.

        Args:
            logits: Of the boxes of all images in a row, `(P, K + 1)`, background first.
            deltas: Their moves, the same for all classes, `(P, 4)`.
            sample: What they should be.
        """
        if not len(logits):  # a mean of nothing is no number
            return logits.sum(), deltas.sum()
        for_each_class = deltas.repeat(1, logits.shape[1])
        classes, moves = fastrcnn_loss(logits, for_each_class, sample.labels, sample.deltas)
        return self.loss_weight * classes, self.loss_weight * moves
