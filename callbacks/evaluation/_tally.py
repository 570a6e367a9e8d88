"""Counting right and wrong answers of a classifier, and keeping its most confident mistakes.

Letters: B batch, N images, K classes, W mistakes that are kept. With one label an image the counts stay on the device,
where adding a batch waits for nothing. With several all probabilities are kept, on the CPU: average precision needs
them, and thresholds may be chosen after the last batch.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..hooks._metadata import Pixels
from ._labels import label_table, thresholds_of, worst_decision
from ._mistakes import Mistakes, resized

__all__ = ["MATRIX", "ClassTally"]

# Above so many classes no matrix is kept (1.3 GB at 2 ** 14), only the counts of each class.
MATRIX = 4096


class ClassTally:
    """Counts of each class, confusions between classes and the W worst mistakes of what `add` was given.

    Targets `(B,)` outside 0..K-1 are passed over. With several labels an image each is a decision of its own, and there
    are no confusions. A single logit decides between the classes 0 and 1, unless the module says that it is one of
    several labels.

    Args:
        worst: W.
        names: Of the classes; used if there are K.
        pixels: With which images were normalised; without it each image is stretched from its least to its largest.
        module: Whose answers these are. Where it says so, its `multilabel` tells whether an image has several labels,
            which else targets `(B, K)` tell; its `calibration` is applied to the logits; and its `thresholds`, K
            probabilities, decide about labels, else a half: about the counts as they are when the report is made,
            about which mistakes are kept as they are in the batch.
        matrix: Whether confusions are counted, of up to 4,096 classes; else each class alone.
    """

    def __init__(
        self, worst: int, names: list[str] | None, pixels: Pixels | None, module: Any = None, matrix: bool = True
    ) -> None:
        self.worst, self.names, self.pixels, self.module, self.matrix = worst, names, pixels, module, matrix
        self._classes: int | None = None

    @torch.no_grad()
    def add(self, image: Any, logits: Tensor, target: Tensor) -> None:
        calibration = getattr(self.module, "calibration", None)
        logits = (calibration(logits) if callable(calibration) else logits).float()
        if logits.shape[1] == 1 and getattr(self.module, "multilabel", None) is not True:
            logits, target = self._two_classes(logits, target)
        if self._classes is None:
            self._begin(logits, target)
        score, rows = self._count_labels(logits, target) if self._multilabel else self._count(logits, target)
        if self.worst:
            self._mistakes.add(image, score, rows)

    def report(self) -> dict[str, Any] | None:
        """Summed over the processes: names, counts `(K, 3)` of images, predicted and right, and lists, longest first.

        `confusions` `(N, 3)`: class, taken for, how often; `mistakes` `(W', 2)`: class, taken for, -1 for none, with
        `confidence` `(W',)` and `images` uint8 `(W', C, h, w)`, None where batches held no images. With several labels
        an image also `average_precision` and `threshold`, K numbers each.
        """
        own = self._own()
        everyone = [own]
        if dist.is_initialized() and dist.get_world_size() > 1:
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
        parts = [it for it in everyone if it is not None]
        return _merged(parts, self.worst) if parts else None

    def _begin(self, logits: Tensor, target: Tensor) -> None:
        classes = self._classes = logits.shape[1]
        said = getattr(self.module, "multilabel", None)
        self._multilabel = said if isinstance(said, bool) else target.ndim == 2
        dense = self.matrix and not self._multilabel and classes <= MATRIX
        self._counts = torch.zeros(classes, 3, dtype=torch.int64, device=logits.device)
        self._matrix = torch.zeros(classes**2, dtype=torch.int64, device=logits.device) if dense else None
        self._mistakes = Mistakes(self.worst, self.pixels, logits.device)
        self._seen: list[tuple[Tensor, Tensor]] = []  # probabilities and labels (B, K)
        self._images = 0

    def _two_classes(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """A single logit as two whose softmax is its sigmoid, and its labels as classes `(B,)`."""
        target = (target > 0.5).long().flatten() if target.is_floating_point() else target.flatten()
        # Asked of the first batch alone, for it waits for the device.
        if self._classes is None and int(target.max()) > 1:
            raise ValueError(
                f"{type(self.module).__name__} answers one logit, which decides between the classes 0 and 1, and a "
                f"label is {int(target.max())}; let it answer a logit for each class."
            )
        return F.pad(logits, (1, 0)), target

    def _count(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Count; the confidence of each mistake, -1 where there is none, and rows of class and what it is taken for."""
        classes = logits.shape[1]
        if target.ndim == 2:
            target = target.argmax(1)
        known = (target >= 0) & (target < classes)
        target = target.clamp(0, classes - 1)
        confidence, said = logits.softmax(1).max(1)
        one = known.long()
        if self._matrix is not None:
            self._matrix.index_add_(0, target * classes + said, one)
        else:
            for column, index, share in ((0, target, one), (1, said, one), (2, said, one * (said == target))):
                self._counts[:, column].index_add_(0, index, share)
        return confidence.where(known & (said != target), -1.0), torch.stack([target, said], 1)

    def _count_labels(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Keep; the confidence of each image's worst decision, and its number, by which the report looks it up."""
        if target.ndim == 1:
            label = target[:, None] == torch.arange(logits.shape[1], device=target.device)
        elif bool(target.isnan().any()):
            raise ValueError(
                "some labels of this batch are unknown, NaN, and a table of right and wrong has no place for them; "
                f"leave this callback out, {type(self.module).__name__} logs metrics of what is known"
            )
        else:
            label = target > 0.5
        probability = logits.sigmoid()
        self._seen.append((probability.cpu(), label.cpu()))
        score, _ = worst_decision(probability, label, thresholds_of(self.module, logits.shape[1]))
        number = self._images + torch.arange(len(logits), device=logits.device)
        self._images += len(logits)
        return score, number[:, None].expand(-1, 2)

    def _own(self) -> dict[str, Any] | None:
        """This process's part, on the CPU."""
        if (classes := self._classes) is None:
            return None
        named = self.names is not None and len(self.names) == classes
        confidence, rows, images = self._mistakes.kept()
        own: dict[str, Any] = {
            "names": self.names if named else [str(it) for it in range(classes)],
            "multilabel": self._multilabel,
            "confusions": torch.zeros(0, 3, dtype=torch.int64),
        }
        if self._multilabel:
            probability, label = (torch.cat(it) for it in zip(*self._seen, strict=True))
            thresholds = thresholds_of(self.module, classes)
            own["decided"] = probability, label, thresholds
            confidence, rows = worst_decision(probability[rows[:, 0]], label[rows[:, 0]], thresholds)
            # What was wrong by the thresholds of its batch may be right by those of now.
            wrong = confidence >= 0
            confidence, rows, images = confidence[wrong], rows[wrong], None if images is None else images[wrong]
        elif self._matrix is None:
            own["counts"] = self._counts.cpu()
        else:
            matrix = self._matrix.cpu().view(classes, classes)
            own["counts"] = torch.stack([matrix.sum(1), matrix.sum(0), matrix.diagonal()], 1)
            off = matrix - matrix.diagonal().diag()
            pairs = off.nonzero()
            own["confusions"] = torch.cat([pairs, off[pairs[:, 0], pairs[:, 1]][:, None]], 1)
        return own | {"confidence": confidence, "mistakes": rows, "images": images}


def _merged(parts: list[dict[str, Any]], worst: int) -> dict[str, Any]:
    first = parts[0]
    classes = len(first["names"])
    found = torch.cat([it["confusions"] for it in parts])
    codes, inverse = (found[:, 0] * classes + found[:, 1]).unique(return_inverse=True)
    times = torch.zeros_like(codes).index_add_(0, inverse, found[:, 2])
    confusions = torch.stack([codes // classes, codes % classes, times], 1)
    confidence = torch.cat([it["confidence"] for it in parts])
    order = confidence.argsort(descending=True, stable=True)[:worst]
    pictures = [it["images"] for it in parts if it["images"] is not None]
    # Either all of a loader's batches hold images or none does; a process without mistakes has none, too.
    complete = sum(map(len, pictures)) == len(confidence) > 0
    if first["multilabel"]:
        probability, label, thresholds = zip(*(it["decided"] for it in parts), strict=True)
        table = label_table(torch.cat(probability), torch.cat(label), thresholds[0])
    else:
        table = {"counts": torch.stack([it["counts"] for it in parts]).sum(0)}
    return {
        "names": first["names"],
        "multilabel": first["multilabel"],
        **table,
        "confusions": confusions[times.argsort(descending=True, stable=True)],
        "confidence": confidence[order],
        "mistakes": torch.cat([it["mistakes"] for it in parts])[order],
        "images": torch.cat([resized(it, pictures[0].shape[2:]) for it in pictures])[order] if complete else None,
    }
