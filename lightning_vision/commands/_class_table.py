"""What a datamodule holds, said in a few lines before a training: images of each class in each split."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

__all__ = ["class_rows", "gaps", "known_counts", "uneven"]

SHOWN = 30
ENDS = 5
RARE = 10


def known_counts(datamodule: Any) -> dict[str, dict[str, int]]:
    """Images of each class, by split, as a datamodule's `class_counts` tells them; empty where it tells otherwise.

    Args:
        datamodule: Anybody's; others may use the name for a tensor, a list, or one level of numbers.
    """
    told = getattr(datamodule, "class_counts", None)
    splits = dict(told) if isinstance(told, Mapping) else {}
    numbers = [count for split in splits.values() if isinstance(split, Mapping) for count in split.values()]
    usable = all(isinstance(split, Mapping) and split for split in splits.values())
    if "train" not in splits or not usable or not all(isinstance(count, Integral) for count in numbers):
        return {}
    return {str(name): {str(label): int(count) for label, count in split.items()} for name, split in splits.items()}


def class_rows(counts: Mapping[str, Mapping[str, int]]) -> dict[str, str]:
    """Rows of a table: one for each class, with more than 30 classes for the largest and the smallest ones.

    Args:
        counts: Images of each class, by split.
    """
    names = list(dict.fromkeys(name for split in counts.values() for name in split))
    order = names
    if len(names) > SHOWN:
        largest = sorted(names, key=lambda name: -sum(split.get(name, 0) for split in counts.values()))
        order = [*largest[:ENDS], "...", *largest[-ENDS:]]
    rows = {"class": "  ".join(f"{split:>7}" for split in counts)}
    for name in order:
        rows[name] = "" if name == "..." else "  ".join(f"{split.get(name, 0):7}" for split in counts.values())
    total = "all" if len(names) <= SHOWN else f"all {len(names)} classes"
    return rows | {total: "  ".join(f"{sum(split.values()):7}" for split in counts.values())}


def gaps(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence for each split that lacks images of some class."""
    said = []
    for split, numbers in counts.items():
        if missing := [name for name, number in numbers.items() if not number]:
            more = f" and {len(missing) - 3} more" if missing[3:] else ""
            said.append(f"No {split} image of {', '.join(missing[:3])}{more}: too few images to divide.")
    return said


def uneven(counts: Mapping[str, int]) -> str:
    """A sentence where one class has ten times the images of another, else nothing."""
    most, least = max(counts, key=lambda name: counts[name]), min(counts, key=lambda name: counts[name])
    ratio = counts[most] / max(1, counts[least])
    if ratio < RARE:
        return ""
    return (
        f"{most} has {ratio:.0f} times the training images of {least}: if rare classes must be found, "
        "try --model.class_weights balanced."
    )
