"""How often each class occurs in the training images, and the weights that make up for it.

Letters: K classes, n_k training images of class k, n all of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["balanced_weights", "pos_weight", "training_counts"]


def training_counts(datamodule: Any, num_classes: int, wanted_by: str) -> dict[str, Any]:
    """Training images of each class, from any datamodule with `class_counts`.

    Args:
        datamodule: Its `class_counts["train"]` holds a number for each class, by name, in the order of the labels; None
            stands for a fit without one.
        num_classes: K.
        wanted_by: The setting that needs the counts, for the errors.

    Returns:
        `{"classes": [n_1, ..., n_K], "images": n}`; with several labels an image n is less than the sum.

    Raises:
        ValueError: the datamodule does not say, says it of other classes, or knows some labels alone; a class has no
            training image.
    """
    source = "a fit without a datamodule" if datamodule is None else type(datamodule).__name__
    told = getattr(datamodule, "class_counts", None)
    named = told.get("train") if isinstance(told, Mapping) else None
    if not isinstance(named, Mapping):
        raise ValueError(
            f"{wanted_by} counts the training images of each class, but {source} has no class_counts['train']; "
            "give it that attribute, or pass class_weights as a list of numbers"
        )
    counts = [int(count) for count in named.values()]
    if len(counts) != num_classes:
        raise ValueError(
            f"{wanted_by} needs {num_classes} counts, but class_counts['train'] of {source} has {len(counts)}; "
            "make num_classes and the data agree"
        )
    if getattr(datamodule, "partly_known", False):
        raise ValueError(
            f"{wanted_by} compares how often each label is there with how often it is not, but of {source}'s images "
            "some labels are unknown; pass class_weights as a list of numbers"
        )
    if empty := [str(name) for name, count in named.items() if not count]:
        raise ValueError(
            f"{wanted_by} cannot balance {', '.join(empty)} of {source}, which has no training image of it; "
            "add some, leave the class out of the data, or pass class_weights as a list of numbers"
        )
    images = getattr(datamodule, "train_set", None)
    return {"classes": counts, "images": sum(counts) if images is None else len(images)}


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Weight of each class, `n / (K n_k)`: every class counts equally, and the mean over all images is 1.

    Args:
        counts: Images of each class, K numbers above 0.
    """
    return [sum(counts) / (len(counts) * count) for count in counts]


def pos_weight(counts: Sequence[int], images: int) -> list[float]:
    """Weight of each label's yes, `(n - n_k) / n_k`, torch's `pos_weight`: it counts as much as all its noes.

    Args:
        counts: Images with each label, K numbers above 0.
        images: n.
    """
    return [(images - count) / count for count in counts]
