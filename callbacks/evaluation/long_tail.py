"""Long tails: how classes fall off in number, and the accuracy of those with many, some and few training images.

Cui et al. 2019, arXiv:1901.05555, section 5.1 (the counts); Liu et al. 2019, arXiv:1904.05160 (the three groups).
"""

from collections.abc import Sequence

from torch import Tensor

__all__ = ["exponential_counts", "shot_accuracy"]

SHOTS = ("many", "medium", "few")


def exponential_counts(largest: int, mu: float, classes: int) -> list[int]:
    """Images of each class of a long tail, n mu^i for class i from 0 on, rounded and at least 1.

    Args:
        largest: n, images of the first class, >= 1.
        mu: From one class to the next, in (0, 1]; for an imbalance of 100 between the first and the last of K classes
            it is 100 ** (-1 / (K - 1)). 1 is balanced.
        classes: K, >= 1.

    Example:
        >>> from lightning_vision.callbacks import exponential_counts
        >>> exponential_counts(100, 0.1, 3)
        [100, 10, 1]

    Reference: Cui et al. 2019, arXiv:1901.05555
    """
    if largest < 1 or classes < 1 or not 0 < mu <= 1:
        raise ValueError(
            f"exponential_counts: largest is {largest}, mu {mu} and classes {classes}; give at least 1, a number above "
            "0 and up to 1, and at least 1."
        )
    return [max(round(largest * mu**index), 1) for index in range(classes)]


def shot_accuracy(
    counts: Tensor, training: Sequence[int], few: int = 20, many: int = 100
) -> dict[str, tuple[float, int]]:
    """Accuracy and number of images of the classes with many, some and few training images.

    The accuracies, weighted with these numbers, sum to the overall one; a group without images is left out.

    Args:
        counts: `(K, 3)` whole numbers: evaluated images of each class, how often it was predicted, how often rightly.
        training: Training images of each class, K numbers.
        few: A class with fewer training images than this is one of few shots.
        many: A class with more training images than this is one of many.

    Raises:
        ValueError: there are other than K numbers of training images.

    Example:
        >>> import torch
        >>> from lightning_vision.callbacks import shot_accuracy
        >>> shot_accuracy(torch.tensor([[4, 3, 3], [2, 3, 1]]), training=[500, 5])
        {'many': (0.75, 4), 'few': (0.5, 2)}

    Reference: Liu et al. 2019, arXiv:1904.05160
    """
    if len(training) != len(counts):
        raise ValueError(
            f"shot_accuracy: there are {len(training)} numbers of training images for {len(counts)} classes; give one "
            "for each."
        )
    sums = {shot: [0, 0] for shot in SHOTS}
    for (images, _, right), own in zip(counts.tolist(), training, strict=True):
        shot = sums["many" if own > many else "few" if own < few else "medium"]
        shot[0] += images
        shot[1] += right
    return {shot: (right / images, images) for shot, (images, right) in sums.items() if images}
