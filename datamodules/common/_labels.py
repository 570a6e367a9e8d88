"""Checking labels before a loss or an embedding on a GPU fails on them without saying where."""

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

__all__ = ["check_balanced", "check_labels", "known_targets"]


def check_labels(target: Tensor, num_classes: int, index: Tensor | None = None, source: str = "") -> None:
    """Refuse labels that do not fit.

    Args:
        target: Classes int64 `(N,)`, or one column a class for several at once, `(N, num_classes)` in 0..1 or NaN,
            which means that nobody knows.
        num_classes: How many classes there are.
        index: Numbers of the samples for the message, int64 `(N,)`, by default their positions.
        source: What the samples belong to, for the message.

    Raises:
        ValueError: names the sample, its label and the range.
    """
    if target.ndim == 2 and target.shape[1] != num_classes:
        raise ValueError(f"{source}labels have {target.shape[1]} columns but there are {num_classes} classes")
    if target.numel() == 0:
        return
    low, high = target.nan_to_num(0).aminmax()
    most = num_classes - 1 if target.ndim == 1 else 1
    if low >= 0 and high <= most:
        return
    wrong = ((target < 0) | (target > most)).nonzero()[0]
    sample = int(wrong[0] if index is None else index[wrong[0]])
    raise ValueError(
        f"{source}label {target[tuple(wrong)].item()} of sample {sample} is outside 0..{most}; "
        f"there are {num_classes} classes"
    )


def check_balanced(targets: Tensor | None, num_classes: int, source: str) -> None:
    """Refuse labels by which an epoch cannot be balanced.

    Args:
        targets: Labels of the training images, None where they are unknown.
        num_classes: How many classes there are.
        source: The datamodule's name, for the message.

    Raises:
        ValueError: the labels are unknown, several to an image or outside 0 .. num_classes - 1.
    """
    if targets is None or targets.ndim != 1:
        found = "does not tell its labels before it loads images" if targets is None else "has several labels an image"
        raise ValueError(
            f"sampler='balanced' draws images by their one class, but {source} {found}; use sampler='all' and weigh "
            "the classes in the loss"
        )
    check_labels(targets, num_classes, source="train: ")


def known_targets(dataset: Dataset) -> Tensor | None:
    """Labels that a dataset tells without loading images: `targets`, `labels` or the second tensor, also of parts.

    None where it tells none, or where a `target_transform` changes them.
    """
    if getattr(dataset, "target_transform", None) is not None:
        return None
    if isinstance(dataset, Subset):
        targets = known_targets(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [known_targets(part) for part in dataset.datasets]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if len(found) == len(parts) else None
    listed = dataset.tensors[1] if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1 else None
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None) if listed is None else listed
    try:
        targets = torch.as_tensor(listed)
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not targets.is_floating_point() and not targets.is_complex() and targets.dtype != torch.bool
    return targets.long() if whole and targets.shape == (len(dataset),) else None  # type: ignore[arg-type]  # sized, or it has no labels
