"""What is drawn with words: their font, and pictures side by side with some under each."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet", "font"]

Picture = NDArray[np.uint8]
SIDE, LARGEST = 96, 320  # pixels to about which a small image is enlarged, and to which a large one is reduced
GAP, LINE = 6, 13  # pixels between pictures, and of a line of text


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Letters of `size` pixels, also Greek, Cyrillic and many more, of which class names may be made."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def contact_sheet(
    cells: Sequence[tuple[Sequence[Picture], str]], columns: int = 4, titles: Sequence[str] = ()
) -> Picture:
    """Many samples on one picture: the pictures of a sample side by side, its text under them.

    Small pictures are enlarged by whole factors, large ones reduced; text that does not fit is cut.

    Args:
        cells: For each sample its pictures, each `(H, W, 3)`, and its text, of one or more lines.
        columns: Samples in a row.
        titles: What the pictures of each sample show, written once above the first row, in as many lines as it takes.
    """
    strips = [_strip([_sized(picture, pictures[0]) for picture in pictures]) for pictures, _ in cells]
    lines = [text.split("\n") for _, text in cells]
    width, height = max(it.shape[1] for it in strips), max(it.shape[0] for it in strips)
    text = LINE * max(map(len, lines)) + GAP
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    letters, sides = font(LINE - 3), [_sized(picture, cells[0][0][0]).shape[1] for picture in cells[0][0]]
    names = [_broken(title, letters, side) for title, side in zip(titles, sides, strict=False)]
    above = LINE * max(map(len, names), default=0)
    whole = (GAP + above + rows * (height + text + GAP), GAP + columns * (width + 2 * GAP), 3)
    sheet = Image.fromarray(np.full(whole, 255, dtype=np.uint8))
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        for place, broken in enumerate(names):
            left = GAP + column * (width + 2 * GAP) + sum(sides[:place]) + 2 * place
            for number, line in enumerate(broken):
                draw.text((left, GAP // 2 + number * LINE), line, fill="black", font=letters)
    for index, (strip, words) in enumerate(zip(strips, lines, strict=True)):
        left, top = GAP + index % columns * (width + 2 * GAP), GAP + above + index // columns * (height + text + GAP)
        sheet.paste(Image.fromarray(strip), (left, top))
        for number, line in enumerate(words):
            draw.text(
                (left, top + height + 2 + number * LINE), _fitting(line, letters, width), fill="black", font=letters
            )
    return np.asarray(sheet)


def _sized(picture: Picture, first: Picture) -> Picture:
    """A picture at the scale of the first one beside it, so that their pixels lie at the same heights."""
    side = max(first.shape[:2])
    if side > LARGEST:
        height, width = (max(1, round(it * LARGEST / side)) for it in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), reducing_gap=2.0))
    factor = max(1, round(SIDE / side))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _strip(pictures: Sequence[Picture]) -> Picture:
    height = max(it.shape[0] for it in pictures)
    strip = np.full((height, sum(it.shape[1] for it in pictures) + 2 * (len(pictures) - 1), 3), 255, dtype=np.uint8)
    left = 0
    for picture in pictures:
        strip[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + 2
    return strip


def _fitting(line: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a line as fits."""
    if letters.getlength(line) <= width:
        return line
    while line and letters.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _broken(line: str, letters: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A name over as many lines as it takes, broken behind its dots and lines and before capitals where it has some."""
    lines = [""]
    for part in re.split(r"(?<=[._ ])|(?=[A-Z])", line):
        if lines[-1] and letters.getlength(lines[-1] + part) > width:
            lines.append("")
        for letter in part:
            if lines[-1] and letters.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
