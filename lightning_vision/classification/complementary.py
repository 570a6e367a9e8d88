"""Losses of complementary labels, each of which names a class that an image does *not* show.

Letters: B batch, K classes, z logits `(B, K)`, p = softmax(z), ybar complementary label, Q `transition` `(K, K)`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ComplementaryForward", "ComplementaryNegativeLog", "complementary_forward", "complementary_negative_log"]


def complementary_negative_log(logits: Tensor, complementary: Tensor) -> Tensor:
    """Negative log of the probability that an image does not show its complementary class, averaged over images.

    The mean over B of `-log(1 - p_ybar)`, called SCL-NL. `1 - p_ybar` is the sum of the other classes' probabilities,
    of which the log is taken without forming it, so the loss is finite and has a gradient however sure the network is.

    Args:
        logits: `(B, K)`, K of at least 2.
        complementary: Class that each image does not show, int64 `(B,)`.

    Raises:
        ValueError: a label is none of the classes 0 to K - 1, or no whole number.
    """
    _check(complementary, logits.shape[1])
    logits = _wide(logits)
    shown = F.one_hot(complementary, logits.shape[1]).bool()
    others = logits.masked_fill(shown, float("-inf"))
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def complementary_forward(logits: Tensor, complementary: Tensor, transition: Tensor | None = None) -> Tensor:
    """Cross entropy of complementary labels, as the network's probabilities say that they were drawn.

    The mean over B of `-log(sum_k p_k Q[k, ybar])`, forward correction.

    Args:
        logits: `(B, K)`.
        complementary: Class that each image does not show, int64 `(B,)`.
        transition: Q, `Q[k, j]` the probability that an image of class k is given the complementary label j; None draws
            it evenly from the other classes.

    Raises:
        ValueError: a label is none of the classes 0 to K - 1, or no whole number; the transition is not of K classes,
            or draws a label of this batch from no class.
    """
    logits, count = _wide(logits), logits.shape[1]
    _check(complementary, count)
    if transition is None:
        transition = (1 - torch.eye(count, dtype=logits.dtype, device=logits.device)) / (count - 1)
    elif len(transition) != count:
        raise ValueError(
            f"transition is of {len(transition)} classes, and the logits are of {count}; give one of the classes that "
            "the network tells apart."
        )
    elif bool((never := transition.sum(0) == 0)[complementary].any()):
        raise ValueError(
            f"the batch has a label of {never.nonzero().flatten().tolist()}, which the transition never draws; give "
            "the transition that the labels were drawn by."
        )
    # In logs, for a probability that rounds to 0 has none; of the given labels alone, for one that nobody draws has no
    # gradient, which would be everybody's.
    drawn = transition.T.log()[complementary]
    return -(logits.log_softmax(1) + drawn).logsumexp(1).mean()


class ComplementaryNegativeLog(nn.Module):
    """Trains on complementary labels, classes that an image does *not* show, by making these improbable (SCL-NL).

    In the place of a classifier's loss, with the complementary labels in the place of its targets:
    `ImageClassifier(backbone, loss=ComplementaryNegativeLog())`. An accuracy of such training batches counts the labels
    that the network should avoid; validation and test have ordinary labels, whose accuracy is the one to look at, while
    their loss is none.

    Shape:
        logits `(B, K)`; target int64 `(B,)`; result a scalar, of narrower logits float32.

    Raises:
        ValueError: in a batch, what `complementary_negative_log` raises.

    Example:
        >>> loss = ComplementaryNegativeLog()
        >>> loss(torch.zeros(1, 4), torch.tensor([2])), torch.tensor(0.75).log()
        (tensor(0.2877), tensor(-0.2877))

    Reference: Chou et al. 2020, arXiv:2007.02235

    See also:
        `ComplementaryForward`, which knows how the labels were drawn; `IntraClusterMixup`, the MixUp for such labels.
    """

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return complementary_negative_log(logits, target)


class ComplementaryForward(nn.Module):
    """Trains on complementary labels, classes that an image does *not* show, by how they were drawn.

    Args:
        transition: Q, K rows of K numbers: row k holds how probable each complementary label is for an image of class
            k. None: any class but k, evenly.

    Shape:
        logits `(B, K)`; target int64 `(B,)`; result a scalar, of narrower logits float32.

    Raises:
        ValueError: `transition` is no square of numbers of at least 0 whose rows add up to 1; in a batch, what
            `complementary_forward` raises.

    Example:
        >>> ComplementaryForward()(torch.zeros(1, 4), torch.tensor([2])), torch.tensor(0.25).log()
        (tensor(1.3863), tensor(-1.3863))

    Reference: Yu et al. 2018, arXiv:1711.09535

    See also:
        `ComplementaryNegativeLog`, which does not ask how the labels were drawn.
    """

    transition: Tensor | None

    def __init__(self, transition: Sequence[Sequence[float]] | None = None) -> None:
        super().__init__()
        matrix = None if transition is None else torch.tensor(transition, dtype=torch.float32)
        if matrix is not None and not _draws(matrix):
            raise ValueError(
                f"transition has the shape {tuple(matrix.shape)} or rows that add up to something else than 1; give K "
                "rows of K probabilities"
            )
        self.register_buffer("transition", matrix, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return complementary_forward(logits, target, self.transition)


def _wide(logits: Tensor) -> Tensor:
    """In single precision at least: the difference of two logarithms of sums vanishes in half of it."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(complementary: Tensor, classes: int) -> None:
    if complementary.is_floating_point() or complementary.ndim != 1:
        raise ValueError(
            f"complementary labels are {str(complementary.dtype).removeprefix('torch.')} "
            f"{tuple(complementary.shape)} and must be whole numbers (B,), the class that each image does not show; "
            "where a callback mixes them, leave it at targets='loss'."
        )
    if bool(((complementary < 0) | (complementary >= classes)).any()):
        raise ValueError(
            f"complementary labels run from {int(complementary.min())} to {int(complementary.max())}, and the logits "
            f"are of the classes 0 to {classes - 1}; leave images without such a label out of the training set."
        )


def _draws(matrix: Tensor) -> bool:
    square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
    return square and bool((matrix >= 0).all()) and torch.allclose(matrix.sum(1), torch.ones(len(matrix)))
