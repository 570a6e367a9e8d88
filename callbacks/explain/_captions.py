"""The words under a picture: what the module answered for an image, and what the image is."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..hooks._samples import Samples, labels_of

__all__ = ["answers", "truth_of"]


def answers(answer: Any, samples: Samples, multilabel: Any = None) -> list[str]:
    """A line for each image: `said cat (0.93)`, of a detector `found cat x2 (0.93), dog (0.41)`.

    In parentheses stands the probability, by a softmax, or by a sigmoid where images may have several labels; of a
    detector the best score of the class. A single logit decides between the classes 0 and 1.

    Args:
        answer: Logits `(n, K)`, or of each image a mapping with `scores` `(D,)` and `labels` `(D,)`.
        samples: All that are drawn, for names and for the kind of labels.
        multilabel: Whether images may have several labels; where it is no bool, labels `(K,)` say that they may.
    """
    if not isinstance(answer, Tensor):
        return [_detected(it, samples) for it in answer]
    logits = answer.detach().float().cpu()
    if not isinstance(multilabel, bool):
        multilabel = any(isinstance(it, Tensor) and it.ndim == 1 and len(it) > 1 for it in samples.targets)
    if logits.shape[1] == 1:
        # Beside a zero its softmax is its sigmoid.
        logits, multilabel = F.pad(logits, (1, 0)), False
    sure, said = (logits.sigmoid() if multilabel else logits.softmax(1)).max(1)
    pairs = zip(said.tolist(), sure.tolist(), strict=True)
    return [f"said {samples.called(index)} ({share:.2f})" for index, share in pairs]


def _detected(found: Mapping[str, Tensor], samples: Samples) -> str:
    scores, labels = found["scores"].detach().float().cpu(), found["labels"].cpu()
    classes = _counted(labels.tolist(), samples.object)
    best = [float(scores[labels == index].max()) for index in classes]
    lines = [
        f"{words} ({score:.2f})" for score, words in sorted(zip(best, classes.values(), strict=True), reverse=True)
    ]
    return f"found {', '.join(lines) or 'nothing'}"


def truth_of(target: Any, samples: Samples) -> str:
    """`is cat`, of several labels `is cat, dog`, of a detector's objects `holds cat x2`; empty if nothing is known."""
    objects = isinstance(target, Mapping) and "labels" in target
    words = ", ".join(_counted(labels_of(target), samples.object if objects else samples.called).values())
    if objects:
        return f"holds {words or 'nothing'}"
    return f"is {words}" if words else ""


def _counted(labels: Iterable[int], called: Callable[[int], str]) -> dict[int, str]:
    """Each class once, with its name and how often where it is there more than once."""
    return {
        index: f"{called(index)} x{count}" if count > 1 else called(index) for index, count in Counter(labels).items()
    }
