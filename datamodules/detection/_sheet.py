"""Drawing images with boxes as a sheet."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ..common._sheet import draw_sheet
from .annotations import Annotations

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_box_sheet"]


def draw_box_sheet(
    states: Sequence[tuple[Tensor, Annotations]],
    class_names: Sequence[str],
    titles: Sequence[str],
    path: str | Path | None = None,
    below: str = "",
    columns: int | None = None,
) -> "Figure":
    """`draw_sheet` with a frame around each object, a colour a class, dashed around crowds, and the class's name.

    Args:
        states: Images uint8 `(N, C, H, W)` and their objects, and likewise what stands below them row by row.
        class_names: Names of the classes 1..K.
        titles: One an image.
        path: Where to write it, in the format that its ending names.
        below: What stands above each image of the later rows.
        columns: Images in a row; None makes the sheet about square.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    objects = [list(annotations) for _, annotations in states]

    def mark(cell: "Axes", depth: int, number: int) -> None:
        target = objects[depth][number]
        rows = zip(*(target[name].tolist() for name in ("boxes", "labels", "iscrowd")), strict=True)
        for (left, top, right, bottom), label, crowd in rows:
            colour = colormaps["tab10"](label % 10)
            # Pixel 0 is drawn from -0.5 to 0.5.
            corner, style = (left - 0.5, top - 0.5), ":" if crowd else "-"
            cell.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, color=colour, linestyle=style))
            cell.text(
                *corner,
                class_names[label - 1],
                color="white",
                fontsize=6,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.5},
            )

    pixels = [(image / 255).permute(0, 2, 3, 1).numpy() for image, _ in states]
    return draw_sheet(pixels, titles, path, below, width=2.0, mark=mark, columns=columns)
