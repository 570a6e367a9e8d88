"""Drawing labelled images as a sheet."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_sheet"]


def draw_sheet(
    states: Sequence[np.ndarray],
    titles: Sequence[str],
    path: str | Path | None = None,
    below: str = "",
    width: float = 1.3,
    mark: "Callable[[Axes, int, int], None] | None" = None,
    columns: int | None = None,
) -> "Figure":
    """Images in a grid with their titles above; needs no display and leaves matplotlib's settings alone.

    Args:
        states: The images `(N, H, W, C)` in 0..1, C is 1 or 3, and likewise what stands below them row by row, of any
            size, such as the same images augmented.
        titles: One an image.
        path: Where to write it, in the format that its ending names.
        below: What stands above each image of the later rows.
        width: Of an image, inches.
        mark: Called with the axes of each image, the number of its state and its place in the state, to draw upon it.
        columns: Images in a row; None makes the sheet about square.
    """
    from matplotlib.figure import Figure  # a third of a second that training does not need

    count, deep = len(states[0]), len(states)
    columns = columns or min(8, max(1, math.ceil(math.sqrt(deep * count))))
    rows = deep * max(1, math.ceil(count / columns))
    figure = Figure(figsize=(width * columns, (width + 0.2) * rows), layout="constrained")
    cells = figure.subplots(rows, columns, squeeze=False)
    for cell in cells.flat:
        cell.set_axis_off()
    for depth, images in enumerate(states):
        for number, image in enumerate(images):
            cell = cells[number // columns * deep + depth, number % columns]
            cell.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            cell.set_title(below if depth else titles[number], fontsize=9)
            if mark is not None:
                mark(cell, depth, number)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
