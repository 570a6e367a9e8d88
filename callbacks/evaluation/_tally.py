"""Counting right and wrong answers of a classifier, and keeping its most confident mistakes.

Letters: B batch, K classes, W mistakes that are kept. Counts stay on the device, where adding a batch waits for
nothing; on the CPU a batch without a mistake worth keeping touches no image.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..hooks.predictions import Pixels

__all__ = ["ClassTally"]

SIDE = 96  # pixels of the longer side of a kept image, at most
# Above so many classes no matrix is kept (1.3 GB at 2 ** 14), only the counts of each class.
MATRIX = 4096


class ClassTally:
    """Counts of each class, confusions between classes and the W worst mistakes of what `add` was given.

    Targets `(B,)` outside 0..K-1 are passed over. With targets `(B, K)` each class is a decision of its own, yes above
    a logit of 0, and there are no confusions.

    Args:
        worst: W.
        names: Of the classes; used if there are K.
        pixels: With which images were normalised; without it each image is stretched from its least to its largest.
    """

    def __init__(self, worst: int, names: list[str] | None, pixels: Pixels | None) -> None:
        self.worst, self.names, self.pixels = worst, names, pixels
        self._counts: Tensor | None = None  # (K, 3): images, predicted, right
        self._multilabel = False

    @torch.no_grad()
    def add(self, image: Any, logits: Tensor, target: Tensor) -> None:
        logits = logits.float()
        if self._counts is None:
            self._begin(logits, target)
        score, rows = self._count_labels(logits, target) if self._multilabel else self._count(logits, target)
        if self.worst:
            self._keep(image, score, rows)

    def report(self) -> dict[str, Any] | None:
        """Summed over the processes: names, counts `(K, 3)` of images, predicted and right, and lists, longest first.

        `confusions` `(N, 3)`: class, taken for, how often; `mistakes` `(W', 2)`: class, taken for, -1 for none, with
        `confidence` `(W',)` and `images` uint8 `(W', C, h, w)`, None where batches held no images.
        """
        own = self._own()
        everyone = [own]
        if dist.is_initialized() and dist.get_world_size() > 1:
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, own)
        parts = [it for it in everyone if it is not None]
        return _merged(parts, self.worst) if parts else None

    def _begin(self, logits: Tensor, target: Tensor) -> None:
        classes = logits.shape[1]
        self._multilabel = target.ndim == 2
        self._counts = torch.zeros(classes, 3, dtype=torch.int64, device=logits.device)
        dense = not self._multilabel and classes <= MATRIX
        self._matrix = torch.zeros(classes**2, dtype=torch.int64, device=logits.device) if dense else None
        self._scores = torch.full((self.worst,), -1.0, device=logits.device)
        self._rows = torch.full((self.worst, 2), -1, device=logits.device)
        self._images: Tensor | None = None

    def _count(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Count; the confidence of each mistake, -1 where there is none, and rows of class and what it is taken for."""
        assert self._counts is not None
        classes = len(self._counts)
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
        """The same with a decision a class; an image's mistake is its most confident one, the other column is -1."""
        assert self._counts is not None
        label, yes, probability = target > 0.5, logits > 0, logits.sigmoid()
        self._counts += torch.stack([label.sum(0), yes.sum(0), (label & yes).sum(0)], 1)
        wrong = torch.where(yes, probability, 1 - probability).where(yes != label, -1.0)
        score, at = wrong.max(1)
        invented = yes.gather(1, at[:, None])[:, 0]
        return score, torch.stack([at.where(~invented, -1), at.where(invented, -1)], 1)

    def _keep(self, image: Any, score: Tensor, rows: Tensor) -> None:
        best, at = score.topk(min(self.worst, len(score)))
        if score.device.type == "cpu":
            # Elsewhere asking how many they are would wait for the device.
            better = best > self._scores[-1]
            best, at = best[better], at[better]
            if not len(best):
                return
        merged = torch.cat([self._scores, best]).topk(self.worst)
        self._scores = merged.values
        self._rows = torch.cat([self._rows, rows[at]])[merged.indices]
        if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1]:
            small = _thumbnails(image[at], self.pixels)
            if self._images is None:
                self._images = small.new_zeros(self.worst, *small.shape[1:])
            small = _resized(small, self._images.shape[2:])
            self._images = torch.cat([self._images, small])[merged.indices]

    def _own(self) -> dict[str, Any] | None:
        """This process's part, on the CPU."""
        if self._counts is None:
            return None
        counts, classes = self._counts.cpu(), len(self._counts)
        confusions = torch.zeros(0, 3, dtype=torch.int64)
        if self._matrix is not None:
            matrix = self._matrix.cpu().view(classes, classes)
            counts = torch.stack([matrix.sum(1), matrix.sum(0), matrix.diagonal()], 1)
            off = matrix - matrix.diagonal().diag()
            pairs = off.nonzero()
            confusions = torch.cat([pairs, off[pairs[:, 0], pairs[:, 1]][:, None]], 1)
        mistakes = self._scores.cpu() >= 0
        named = self.names is not None and len(self.names) == classes
        return {
            "names": self.names if named else [str(it) for it in range(classes)],
            "multilabel": self._multilabel,
            "counts": counts,
            "confusions": confusions,
            "confidence": self._scores.cpu()[mistakes],
            "mistakes": self._rows.cpu()[mistakes],
            "images": None if self._images is None else self._images.cpu()[mistakes],
        }


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
    return first | {
        "counts": torch.stack([it["counts"] for it in parts]).sum(0),
        "confusions": confusions[times.argsort(descending=True, stable=True)],
        "confidence": confidence[order],
        "mistakes": torch.cat([it["mistakes"] for it in parts])[order],
        "images": torch.cat([_resized(it, pictures[0].shape[2:]) for it in pictures])[order] if complete else None,
    }


def _thumbnails(images: Tensor, pixels: Pixels | None) -> Tensor:
    """Images `(W, C, H, W')` as uint8 of one or three channels and at most `SIDE` pixels a side."""
    height, width = images.shape[2:]
    shrink = min(1.0, SIDE / max(height, width))
    size = torch.Size([max(1, round(height * shrink)), max(1, round(width * shrink))])
    if images.dtype == torch.uint8:
        images = images.float() / 255
    elif pixels is not None and len(pixels[0]) == len(pixels[1]) == images.shape[1]:
        mean, std = (torch.tensor(it, device=images.device)[:, None, None] for it in pixels)
        images = images.float() * std + mean
    else:
        images = images.float()
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        images = (images - low) / (high - low).clamp_min(1e-12)
    images = images[:, : 3 if images.shape[1] >= 3 else 1]
    return _resized((images * 255).round().clamp(0, 255).to(torch.uint8), size)


def _resized(images: Tensor, size: torch.Size) -> Tensor:
    if images.shape[2:] == size:
        return images
    return F.interpolate(images.float(), size, mode="area").round().to(torch.uint8)
