"""Drawing labelled images as a sheet."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_sheet"]


def draw_sheet(images: np.ndarray, titles: Sequence[str], path: str | Path | None = None) -> "Figure":
    """Images in a grid with their titles above; needs no display and leaves matplotlib's settings alone.

    Args:
        images: `(N, H, W, C)` in 0..1, C is 1 or 3.
        titles: One an image.
        path: Where to write it, in the format that its ending names.
    """
    from matplotlib.figure import Figure  # a third of a second that training does not need

    columns = min(8, max(1, math.ceil(math.sqrt(len(images)))))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.3 * columns, 1.5 * rows), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for cell in cells:
        cell.set_axis_off()
    for cell, image, title in zip(cells, images, titles, strict=False):
        cell.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        cell.set_title(title, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
