"""From the classes and boxes of a cascade's stages to detections."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, remove_small_boxes

__all__ = ["CascadeDetections", "averaged_scores"]


def averaged_scores(logits: Sequence[Tensor]) -> Tensor:
    """The mean over stages of the probabilities `(P, K)` of the classes, from logits `(P, K + 1)`, background first."""
    return torch.stack([stage.softmax(-1) for stage in logits]).mean(0)[:, 1:]


class CascadeDetections:
    """Detections of a cascade: the boxes of its last stage, scored by the mean of all stages.

    Args:
        score_threshold: Detections below are dropped, 0..1.
        nms_threshold: Of detections of a class that overlap by more, intersection over union, the best stays.
        max_detections: At most so many an image.
    """

    def __init__(self, score_threshold: float, nms_threshold: float, max_detections: int) -> None:
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def __call__(self, logits: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """`boxes`, `labels` in 1..K and `scores` of each image, the best first.

        Args:
            logits: Of each stage, those of all images in a row, `(P, K + 1)`, background first.
            boxes: Of the last stage, `(P, 4)` an image, within the image.
        """
        scores = averaged_scores(logits).split([len(found) for found in boxes])
        return [self._best(*pair) for pair in zip(scores, boxes, strict=True)]

    def _best(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        rows, classes = torch.where(scores > self.score_threshold)
        scores, boxes, labels = scores[rows, classes], boxes[rows], classes + 1
        large = remove_small_boxes(boxes, 1e-2)
        scores, boxes, labels = scores[large], boxes[large], labels[large]
        best = batched_nms(boxes, scores, labels, self.nms_threshold)[: self.max_detections]
        return {"boxes": boxes[best], "labels": labels[best], "scores": scores[best]}
