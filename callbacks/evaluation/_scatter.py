"""A map of points coloured by their classes, with a legend."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..hooks._sheet import font

__all__ = ["scatter_picture"]

SIDE, MARGIN, LETTER, LINE = 480, 12, 12, 18  # pixels
FINE = 4  # dots are drawn so many times larger, for smooth edges
RADIUS = 3.2
LONGEST = 24  # letters of a name
COLOURS = 20  # that can be told from each other
GREY = (205, 205, 205)


def scatter_picture(
    points: NDArray[Any], classes: Sequence[int], names: Sequence[str], title: str
) -> NDArray[np.uint8]:
    """Points in the plane as a picture `(H, W, 3)`, the most frequent classes in colours, all others in grey.

    Args:
        points: Finite, `(N, 2)`; both axes are stretched to the picture's.
        classes: Of each point, -1 where there is none.
        names: Of the classes.
        title: A line above.
    """
    counts = Counter(it for it in classes if it >= 0)
    shown = sorted(it for it, _ in counts.most_common(COLOURS))
    scale = mpl.colormaps["tab10" if len(shown) <= 10 else "tab20"](range(len(shown)), bytes=True)[:, :3].tolist()
    colours = {it: tuple(colour) for it, colour in zip(shown, scale, strict=True)}
    low, high = points.min(0), points.max(0)
    places = (points - low) / np.where(high > low, high - low, 1) * (1, -1) + (0, 1)
    inside = SIDE - 4 * RADIUS
    canvas = Image.new("RGB", (SIDE * FINE, SIDE * FINE), "white")
    draw, radius = ImageDraw.Draw(canvas), RADIUS * FINE
    # Grey ones first, so that they lie under the others.
    for index in sorted(range(len(points)), key=lambda it: classes[it] in colours):
        x, y = (places[index] * inside + 2 * RADIUS) * FINE
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours.get(classes[index], GREY))
    legend = [(colours[it], _short(names[it])) for it in shown]
    if any(it not in colours for it in classes):
        legend.append((GREY, "others" if shown else "images"))
    letters = font(LETTER)
    wide = round(max(letters.getlength(name) for _, name in legend)) + LINE + 2 * MARGIN
    sheet = Image.new(
        "RGB", (SIDE + 2 * MARGIN + wide, LINE + MARGIN + max(SIDE, len(legend) * LINE) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN / 2), title, "black", letters)
    top, left = LINE + MARGIN, SIDE + 2 * MARGIN
    sheet.paste(canvas.reduce(FINE), (MARGIN, top))
    draw.rectangle((MARGIN, top, MARGIN + SIDE - 1, top + SIDE - 1), outline=GREY)
    for index, (colour, name) in enumerate(legend):
        middle = top + (index + 0.5) * LINE
        draw.rectangle((left, middle - 4, left + 8, middle + 4), colour)
        draw.text((left + LINE, middle), name, "black", letters, anchor="lm")
    return np.asarray(sheet)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
