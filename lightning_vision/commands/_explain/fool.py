"""`explain --mode fool`: images that look like nothing and that the network is sure of."""

from pathlib import Path
from typing import Any, Literal, get_args

from lightning_vision.catalogue import nearest
from lightning_vision.commands._explain.pictures import (
    Cells,
    chosen_units,
    normalisation,
    write_sheet,
    write_table,
)
from lightning_vision.commands._explain.subject import Subject
from lightning_vision.commands._report import print_table
from lightning_vision.explain.fooling_images import make_fooling_images

__all__ = ["FILES", "write"]

FILES = ("fool.png", "fool.csv")
Way = Literal["gradient", "evolution", "cppn"]


def write(
    subject: Subject,
    folder: Path,
    class_index: int | str | list[int | str] | None = None,
    method: list[str] | str = "gradient",
    steps: int = 200,
) -> dict[str, Any]:
    """Make an image a class; all classes if none is chosen.

    Returns:
        `confidence`, the probability of each class on its image, calibrated where the checkpoint is.

    Raises:
        ValueError: there is no such class or way, or the classes share no softmax.
    """
    subject.check_shares("fool")
    numbers, names = chosen_units(subject, class_index, None, None)
    way: Any = method
    if way not in get_args(Way):
        ways = get_args(Way)
        raise ValueError(f"--method {way}: --mode fool has {', '.join(ways)}{nearest(str(way), ways)}")
    made = make_fooling_images(
        subject.module, subject.shape, numbers, method=way, steps=steps, **normalisation(subject)
    )
    images = made.images[0].to(subject.module.device)
    sure = [float(row[number]) for row, number in zip(subject.probabilities(images), numbers, strict=True)]
    cells: Cells = [
        ([picture], f"{name}\n{share:.2%}")
        for picture, name, share in zip(subject.pixels(images), names, sure, strict=True)
    ]
    write_sheet(folder / FILES[0], cells, columns=8)
    write_table(folder / FILES[1], ("class_name", "confidence"), list(zip(names, sure, strict=True)))
    found = dict(zip(names, sure, strict=True))
    print_table("how sure the network is of them", {name: f"{share:.2%}" for name, share in found.items()})
    return {"confidence": found}
