"""What a detector finds on a few fixed images beside what is there, as a sheet of every validation."""

from collections.abc import Mapping
from math import isfinite
from typing import Any, ClassVar, final

import numpy as np
import torch
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from torch import Tensor

from ..hooks._checks import number
from ..hooks._samples import Samples
from ..hooks.pictures import Pictures

__all__ = ["DetectionLogger"]


@final
class DetectionLogger(Pictures):
    """Logs a sheet of the boxes that a detector finds on fixed images, beside the true ones, after each validation.

    Found boxes are orange, with class and score; true ones are blue, with their class. The sheet is drawn when a
    validation or test is over, goes to all loggers that take pictures and as a PNG into `media/` of the run's folder,
    and leaves training as it was. Any module will do whose forward answers, in evaluation mode, one
    `{"boxes", "labels", "scores"}` an image, as torchvision's detectors do; it is given a list of images where loaders
    give lists. Class names are the datamodule's or the module's `class_names`, of which the first is label 1's, unless
    it is called background.

    Args:
        samples: Images on the sheet, chosen once, spread over the classes of their first objects, >= 1.
        score_threshold: Found boxes of lower scores are left out, 0..1.
        every_n_epochs: While fitting, validations of every n-th epoch are drawn, from the first on, >= 0; `validate`
            and `test` always. Neutral: 0, which draws nothing.
        image_key: Key of the images, if batches are mappings; in other batches they come first.
        target_key: Key of the targets, if batches are mappings; in other batches they come second.
        name: Part of the state key, and what the pictures are called.

    Shape:
        Images `(B, C, H, W)` or a list of `(C, H, W)`; a target is a mapping with `boxes` `(N, 4)`, left, top, right
        and bottom in pixels, and `labels` `(N,)`; without them the sheet shows what was found alone. Detections are
        `boxes` `(D, 4)`, `labels` `(D,)` and `scores` `(D,)`, 0..1.

    Raises:
        ValueError: an argument out of its range; in the sanity check, a `validate` or a `test`, if batches hold no
            images or the module answers no detections. In a later validation of a fit that is told once, and the
            training goes on.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_vision.callbacks import DetectionLogger
        >>> trainer = Trainer(callbacks=[DetectionLogger(samples=12)], accelerator="cpu", logger=False)

    See also:
        `GradCAMLogger`, which shows where in the image a detector looked; `torchvision.utils.draw_bounding_boxes`.
    """

    title: ClassVar[str] = "detections"
    needs = "detections"

    def __init__(
        self,
        samples: int = 8,
        score_threshold: float = 0.5,
        every_n_epochs: int = 1,
        image_key: str = "image",
        target_key: str = "target",
        name: str | None = None,
    ) -> None:
        super().__init__(
            samples=samples, every_n_epochs=every_n_epochs, image_key=image_key, target_key=target_key, name=name
        )
        number("DetectionLogger", "score_threshold", score_threshold, 0, 1)
        self.score_threshold = score_threshold

    def draw(self, pl_module: LightningModule, samples: Samples) -> Mapping[str, NDArray[np.uint8]]:
        # Here, for matplotlib, whose letters are drawn, takes a while to import and most runs end elsewhere.
        from ._boxes import box_sheet

        found = [self._marked(it, samples) for it in self._answers(pl_module, samples)]
        return {"": box_sheet(samples.shown(), [_true(it, samples) for it in samples.targets], found)}

    def _answers(self, pl_module: LightningModule, samples: Samples) -> list[Mapping[str, Tensor]]:
        """What the module finds on each image."""
        pieces: list[Any] = [list(samples.images)] if samples.listed else samples.pieces()
        found: list[Mapping[str, Tensor]] = []
        for piece in pieces:
            given = [it.to(pl_module.device) for it in piece] if samples.listed else piece.to(pl_module.device)
            with torch.no_grad():
                answer = pl_module(given)
            if not _detections(answer, len(piece)):
                raise ValueError(
                    f"DetectionLogger: {type(pl_module).__name__} answers {_described(answer)} to {len(piece)} images "
                    "where one {'boxes', 'labels', 'scores'} an image is to be drawn; use it on a detector, whose "
                    "forward answers so in evaluation mode."
                )
            found += answer
        return found

    def _marked(self, found: Mapping[str, Tensor], samples: Samples) -> list[tuple[list[float], str]]:
        """The boxes to draw and their words, the best last, so that it is drawn over the others."""
        boxes, scores, labels = (found[part].float().cpu() for part in ("boxes", "scores", "labels"))
        boxes = boxes.view(-1, 4)  # of none some answer an empty tensor of another shape
        order = scores.argsort()
        shown = order[(scores[order] >= self.score_threshold) & boxes[order].isfinite().all(1)]
        rows = zip(boxes[shown].tolist(), scores[shown].tolist(), labels[shown].tolist(), strict=True)
        return [(box, f"{samples.object(int(label))} {score:.2f}") for box, score, label in rows]


def _detections(answer: Any, images: int) -> bool:
    """Whether an answer holds boxes, labels and scores of each image."""
    parts = ("boxes", "labels", "scores")
    if not isinstance(answer, (list, tuple)) or len(answer) != images:
        return False
    return all(isinstance(it, Mapping) and all(isinstance(it.get(part), Tensor) for part in parts) for it in answer)


def _described(answer: Any) -> str:
    if isinstance(answer, Tensor):
        return f"a tensor {tuple(answer.shape)}"
    if isinstance(answer, (list, tuple)):
        return f"a {type(answer).__name__} of {len(answer)}"
    return f"a {type(answer).__name__}"


def _true(target: Any, samples: Samples) -> list[tuple[list[float], str]] | None:
    """The boxes that a target tells and the names of their classes, None if it is none of a detector's."""
    if not isinstance(target, Mapping) or not all(isinstance(target.get(it), Tensor) for it in ("boxes", "labels")):
        return None
    rows = zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)
    return [(box, samples.object(int(label))) for box, label in rows if all(map(isfinite, box))]
