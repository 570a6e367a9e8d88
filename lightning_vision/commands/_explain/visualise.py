"""`explain --mode visualise`: images that a class or a channel of a layer answers to most."""

from pathlib import Path
from typing import Any

from lightning_vision.commands._explain.pictures import (
    Cells,
    chosen_units,
    normalisation,
    write_sheet,
    write_table,
)
from lightning_vision.commands._explain.subject import Subject
from lightning_vision.explain.activation_maximisation import maximise_activation

__all__ = ["FILES", "write"]

FILES = ("visualise.png", "visualise.csv")
AT_ONCE = 32


def write(
    subject: Subject,
    folder: Path,
    class_index: int | str | list[int | str] | None = None,
    layer: str | None = None,
    channel: list[int] | int | None = None,
    steps: int = 200,
) -> dict[str, Any]:
    """Climb from grey noise, an image a class or channel; all classes if none is chosen.

    Returns:
        `activations`, of each unit before and after.
    """
    numbers, names = chosen_units(subject, class_index, layer, channel)
    cells: Cells = []
    rows: list[tuple[str, float, float]] = []
    for first in range(0, len(numbers), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        made = maximise_activation(
            subject.module, numbers[part], layer, size=subject.shape, steps=steps, **normalisation(subject)
        )
        for name, picture, start, end in zip(
            names[part], subject.pixels(made.images), made.start.tolist(), made.end.tolist(), strict=True
        ):
            cells.append(([picture], f"{name}\n{start:.3g} to {end:.3g}"))
            rows.append((name, start, end))
    write_sheet(folder / FILES[0], cells, columns=8)
    write_table(folder / FILES[1], ("unit", "start", "end"), rows)
    return {"activations": {name: (start, end) for name, start, end in rows}}
