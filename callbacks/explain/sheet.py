"""Drawing maps: over their images, or as pictures of their own, side by side with a line of text under each."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["contact_sheet", "overlay", "signed_picture"]

Picture = NDArray[np.uint8]
SIDE, LARGEST = 112, 320  # pixels to about which a small image is enlarged, and to which a large one is reduced
GAP, LINE = 6, 13  # pixels between pictures, and of a line of text


def overlay(image: Picture, heat: NDArray[Any], alpha: float = 0.5) -> Picture:
    """A heat map laid over its image, blue where it is 0 and red at its maximum.

    Args:
        image: `(H, W, 3)`, 0 to 255.
        heat: `(H, W)`, >= 0 (below counts as 0), divided by its maximum.
        alpha: Share of the colours, 0 shows the image alone, 1 the map alone.
    """
    heat = np.maximum(_finite(heat), 0)
    colours = _coloured(heat / max(float(heat.max()), 1e-12), "turbo")
    return np.round((1 - alpha) * image + alpha * colours).astype(np.uint8)


def signed_picture(values: NDArray[Any]) -> Picture:
    """Signed contributions as colours: red for, blue against, white where there is none; `(H, W)` to `(H, W, 3)`.

    Full colour is the 99.5th percentile of the absolute values, so that a single pixel does not fade all others.
    """
    values = _finite(values)
    largest = max(float(np.percentile(np.abs(values), 99.5)), 1e-12)
    return _coloured(np.clip(values / largest, -1, 1) / 2 + 0.5, "bwr")


def contact_sheet(cells: Sequence[tuple[Sequence[Picture], str]], columns: int = 4) -> Picture:
    """Many samples on one picture: the pictures of a sample side by side, its text under them.

    Small pictures are enlarged by whole factors, large ones reduced; text that does not fit is cut.

    Args:
        cells: For each sample its pictures, each `(H, W, 3)`, and its text, of one or more lines.
        columns: Samples in a row.
    """
    strips = [_strip([_sized(picture) for picture in pictures]) for pictures, _ in cells]
    lines = [text.split("\n") for _, text in cells]
    width, height = max(it.shape[1] for it in strips), max(it.shape[0] for it in strips)
    text = LINE * max(map(len, lines)) + GAP
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    whole = (GAP + rows * (height + text + GAP), GAP + columns * (width + 2 * GAP), 3)
    sheet = Image.fromarray(np.full(whole, 255, dtype=np.uint8))
    draw, font = ImageDraw.Draw(sheet), _font()
    for index, (strip, words) in enumerate(zip(strips, lines, strict=True)):
        left, top = GAP + index % columns * (width + 2 * GAP), GAP + index // columns * (height + text + GAP)
        sheet.paste(Image.fromarray(strip), (left, top))
        for number, line in enumerate(words):
            draw.text((left, top + height + 2 + number * LINE), _fitting(line, font, width), fill="black", font=font)
    return np.asarray(sheet)


def _finite(values: NDArray[Any]) -> NDArray[np.float32]:
    """In float32, with 0 for what is not finite, as of a network that diverged."""
    return np.nan_to_num(np.asarray(values, dtype=np.float32), posinf=0, neginf=0)


def _coloured(values: NDArray[Any], colours: str) -> Picture:
    picture: Picture = mpl.colormaps[colours](values, bytes=True)[..., :3]
    return picture


@cache
def _font() -> ImageFont.FreeTypeFont:
    """One that knows Greek, Cyrillic and many more letters, of which class names may be made."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), LINE - 3)


def _sized(picture: Picture) -> Picture:
    side = max(picture.shape[:2])
    if side > LARGEST:
        small = Image.fromarray(picture)
        small.thumbnail((LARGEST, LARGEST))
        return np.asarray(small)
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


def _fitting(line: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """As much of a line as fits."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"
