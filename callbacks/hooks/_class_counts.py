"""How many training images each class has, from whoever can tell."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer

from ._checks import whole

__all__ = ["check_counts", "class_counts"]


def check_counts(owner: str, argument: str, given: object) -> None:
    """Refuse what a user gave unless it is None or a list of whole numbers, at least 0."""
    if given is not None and not isinstance(given, (list, tuple)):
        raise ValueError(f"{owner}: {argument} is {given!r}; give a list, the training images of each class.")
    for count in given or ():
        whole(owner, f"one of {argument}", count, 0)


def class_counts(owner: str, trainer: Trainer, given: Sequence[int] | None, argument: str) -> list[int]:
    """Training images of each class, in the order of the labels, each at least 1.

    Args:
        owner: Who speaks in a refusal.
        trainer: Asked where nothing is given: its datamodule's `class_counts["train"]`, numbers by name, else the
            integer labels of the training loader's dataset (`targets`, `labels` or the second of `tensors`), of which
            negative ones are passed over.
        given: What a user gave.
        argument: By which it would be given.

    Raises:
        ValueError: nobody tells, or a class has no image.
    """
    counts = given if given is not None else _of_datamodule(trainer) or _of_dataset(trainer)
    if counts is None:
        raise ValueError(
            f"{owner}: how many training images each class has is not known, for neither a datamodule's "
            f"class_counts['train'] nor `targets` of the training set tell; give {argument}=[...], a number for each."
        )
    if empty := [index for index, count in enumerate(counts) if count < 1]:
        raise ValueError(
            f"{owner}: class {empty[0]} has {counts[empty[0]]} training images; give at least one of every class, or "
            "leave the class out of the data."
        )
    return list(counts)


def _of_datamodule(trainer: Trainer) -> list[int] | None:
    data: Any = getattr(trainer, "datamodule", None)
    told = getattr(data, "class_counts", None)
    named = told.get("train") if isinstance(told, Mapping) else None
    return [int(it) for it in named.values()] if isinstance(named, Mapping) else None


def _of_dataset(trainer: Trainer) -> list[int] | None:
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    tensors = getattr(dataset, "tensors", ())
    for labels in (getattr(dataset, "targets", None), getattr(dataset, "labels", None), *tensors[1:2]):
        try:
            found = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            # None, names, or boxes.
            continue
        if found.ndim == 1 and len(found) and not found.is_floating_point():
            counts: list[int] = found[found >= 0].long().bincount().tolist()
            return counts
    return None
