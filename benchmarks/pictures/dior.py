"""How VOC's XML counts the pixels of an object, and how a box does."""

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

__all__ = ["draw"]

LEFT, TOP, RIGHT, BOTTOM, WIDE, HIGH = 3, 2, 7, 5, 9, 6


def draw() -> Figure:
    """One object on a grid of pixels: on the left numbered by pixels from 1, on the right by their corners from 0."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    said = [
        f"XML: xmin {LEFT + 1}, ymin {TOP + 1}, xmax {RIGHT}, ymax {BOTTOM}",
        f"box: {LEFT}, {TOP}, {RIGHT}, {BOTTOM}",
    ]
    for axes, title, by_pixel in zip(figure.subplots(1, 2), said, (True, False), strict=True):
        axes.add_patch(Rectangle((LEFT, TOP), RIGHT - LEFT, BOTTOM - TOP, facecolor="#9ecae1"))
        for column in range(WIDE + 1):
            axes.axvline(column, color="0.7", linewidth=0.8)
        for row in range(HIGH + 1):
            axes.axhline(row, color="0.7", linewidth=0.8)
        axes.add_patch(Rectangle((LEFT, TOP), RIGHT - LEFT, BOTTOM - TOP, fill=False, edgecolor="#d62728", linewidth=2))
        columns, rows = (range(WIDE), range(HIGH)) if by_pixel else (range(WIDE + 1), range(HIGH + 1))
        shift = 0.5 if by_pixel else 0.0
        axes.set_xticks([it + shift for it in columns], [str(it + by_pixel) for it in columns])
        axes.set_yticks([it + shift for it in rows], [str(it + by_pixel) for it in rows])
        axes.set(xlim=(0, WIDE), ylim=(HIGH, 0), aspect="equal")
        axes.set_title(title, fontsize=10)
        axes.tick_params(length=0 if by_pixel else 4, labelsize=8)
    return figure
