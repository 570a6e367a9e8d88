"""Boxes with words, drawn into a picture without antialiasing, so that equal boxes make equal pixels."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..hooks._sheet import contact_sheet, font

__all__ = ["FOUND", "TRUE", "box_sheet", "with_boxes"]

Picture = NDArray[np.uint8]
# A box, left, top, right and bottom in pixels of the image, and what is written at it.
Marked = tuple[list[float], str]
TRUE, FOUND = (60, 190, 255), (255, 160, 0)  # a light blue and an orange, told apart by colour-blind eyes, too
LARGE, LARGEST = 256, 320  # pixels to about which a small image is enlarged, and to which a large one is reduced
WIDTH, LETTERS, TAG = 2, 10, 13  # pixels: of a line, of letters and of the field behind them


def box_sheet(
    images: Sequence[Picture], true: Sequence[Sequence[Marked] | None], found: Sequence[Sequence[Marked]]
) -> Picture:
    """A sheet of images with their true and found boxes, whose numbers stand under each.

    Args:
        images: Each `(H, W, 3)`.
        true: Of each image, None where nobody knows.
        found: Of each image.
    """
    cells = []
    for image, its, seen in zip(images, true, found, strict=True):
        words = f"{len(seen)} found (orange)" + ("" if its is None else f"\n{len(its)} true (blue)")
        cells.append(([with_boxes(image, its or [], seen)], words))
    return contact_sheet(cells)


def with_boxes(image: Picture, true: Iterable[Marked], found: Iterable[Marked]) -> Picture:
    """An image with true boxes around their objects and found ones just inside theirs, so that equal ones both show.

    Small images are enlarged by whole factors, large ones reduced before anything is drawn. The words of a true box
    stand at its lower edge, those of a found one at its upper edge; what comes later is drawn over what came before.

    Args:
        image: `(H, W, 3)`.
        true: What is there.
        found: What was found.

    Returns:
        `(h, w, 3)`, whose longer side is about 256 pixels, at most 320.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    if side > LARGEST:
        size = max(1, round(width * LARGEST / side)), max(1, round(height * LARGEST / side))
        sheet = Image.fromarray(image).resize(size, reducing_gap=2.0)
    else:
        factor = max(1, round(LARGE / side))
        sheet = Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
    draw = ImageDraw.Draw(sheet)
    draw.fontmode = "1"
    scale = np.asarray([sheet.width / width, sheet.height / height] * 2)
    for marked, colour, outside in ((true, TRUE, WIDTH), (found, FOUND, 0)):
        for box, words in marked:
            # No picture is as large; young detectors find boxes that no integer holds.
            left, top, right, bottom = (np.asarray(box) * scale).clip(-1e6, 1e6).round().astype(int).tolist()
            left, top, right, bottom = left - outside, top - outside, right + outside - 1, bottom + outside - 1
            left, right = (min(max(it, 0), sheet.width - 1) for it in (left, max(left, right)))
            top, bottom = (min(max(it, 0), sheet.height - 1) for it in (top, max(top, bottom)))
            draw.rectangle((left, top, right, bottom), outline=colour, width=WIDTH)
            if words:
                wide = round(font(LETTERS).getlength(words)) + 3
                # Above a found box where there is room, and below a true one, so that objects stay in sight.
                above = top - TAG if top >= TAG else top
                below = bottom + 1 if bottom + TAG < sheet.height else bottom - TAG + 1
                begin = min(left, max(0, sheet.width - wide)), max(0, below if outside else above)
                draw.rectangle((*begin, begin[0] + wide - 1, begin[1] + TAG - 1), fill=colour)
                draw.text((begin[0] + 2, begin[1] + 1), words, fill="black", font=font(LETTERS))
    return np.asarray(sheet)
