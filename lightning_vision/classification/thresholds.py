"""From which probability on a label is said to be there, where an image may have several.

Letters: N images, K labels, TP, FP and FN true positives, false positives and misses.
"""

import torch
from torch import Tensor

__all__ = ["best_thresholds"]

NO_CHOICE = 0.5


def best_thresholds(scores: Tensor, target: Tensor) -> list[float]:
    """Threshold of each label above which deciding yes gives the largest F1, exactly, over all possible ones.

    F1 is `2 TP / (2 TP + FP + FN)`. It changes only where the threshold passes a score, so the threshold lies in the
    middle between the two neighbouring scores (below the smallest: between it and 0); of equally good ones it is the
    largest. A score of exactly 0 is never above.

    Args:
        scores: Probabilities `(N, K)` in 0..1.
        target: Which labels are there, 0 and 1, `(N, K)`; -1 is unknown and counts nowhere.

    Returns:
        K numbers in 0..1, exact in float32; `NO_CHOICE`, a half, for a label that no image has.

    Example:
        >>> scores, target = torch.tensor([[0.9], [0.4], [0.2]]), torch.tensor([[1], [1], [0]])
        >>> round(best_thresholds(scores, target)[0], 4)
        0.3
    """
    if not len(scores):
        return [NO_CHOICE] * scores.shape[1]
    scores, order = scores.float().cpu().sort(dim=0, descending=True)
    answers = target.cpu().gather(0, order)
    present = answers.clamp(min=0)
    below = torch.cat([scores[1:], torch.zeros(1, scores.shape[1])])
    said = (answers >= 0).cumsum(0)
    f1 = 2 * present.cumsum(0).double() / (said + present.sum(0))
    # No threshold parts equal scores.
    best = f1.where(below < scores, -1.0).argmax(0, keepdim=True)
    upper, lower = scores.gather(0, best)[0], below.gather(0, best)[0]
    middle = lower + (upper - lower) / 2
    # Between neighbouring floats there is none in the middle.
    chosen = torch.where(middle < upper, middle, lower)
    return torch.where(present.any(0) & (upper > 0), chosen, NO_CHOICE).tolist()
