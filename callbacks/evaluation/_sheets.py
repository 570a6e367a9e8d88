"""The pictures of a report: the confusion matrix and the sheet of the worst mistakes."""

from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from ..hooks._sheet import contact_sheet, font

__all__ = ["captions", "confusion_sheet", "mistake_sheet", "most_confused"]

CLASSES = 24  # of which a matrix is still readable
COLUMNS = 6
CELL, LETTER, GAP = 34, 12, 8  # pixels of a cell of the matrix, of a letter's height, and between things


def confusion_sheet(report: dict[str, Any]) -> NDArray[np.uint8]:
    """The matrix of counts as a picture `(H, W, 3)`, coloured by their share of a class; of many the most confused."""
    chosen = most_confused(report)
    matrix, every, count = _part(report, chosen), len(report["names"]), len(chosen)
    names = [_short(report["names"][it]) for it in chosen]
    share = matrix / report["counts"][chosen, 0].clamp_min(1)[:, None]
    letters = font(LETTER)
    words = GAP + round(max(letters.getlength(it) for it in names)) + GAP
    left, top = words + LETTER + GAP, 2 * GAP + (LETTER + GAP if count < every else 0)
    side = count * CELL
    sheet = Image.new("RGB", (left + side + 2 * GAP, top + side + words + LETTER + 2 * GAP), "white")
    # The root, so that a rare confusion is seen beside the diagonal.
    colours = mpl.colormaps["Blues"](share.sqrt().numpy(), bytes=True)[..., :3]
    sheet.paste(Image.fromarray(colours.repeat(CELL, 0).repeat(CELL, 1)), (left, top))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left - 1, top - 1, left + side, top + side), outline="black")
    for row, column in matrix.nonzero().tolist():
        number = int(matrix[row, column])
        text = f"{number}" if number < 10_000 else f"{number // 1000}k"
        middle = left + (column + 0.5) * CELL, top + (row + 0.5) * CELL
        draw.text(middle, text, "white" if share[row, column] > 0.4 else "black", letters, anchor="mm")
    for index, name in enumerate(names):
        draw.text((left - GAP, top + (index + 0.5) * CELL), name, "black", letters, anchor="rm")
        _upright(sheet, left + (index + 0.5) * CELL, top + side + GAP, name, letters)
    draw.text((left + side / 2, sheet.height - GAP), "taken for", "black", letters, anchor="ms")
    _upright(sheet, GAP + LETTER / 2, top + side / 2 - letters.getlength("class") / 2, "class", letters)
    if count < every:
        draw.text((left, GAP), f"the {count} most confused of {every:,} classes", "black", letters)
    return np.asarray(sheet)


def mistake_sheet(report: dict[str, Any]) -> NDArray[np.uint8]:
    """The kept mistakes `(H, W, 3)`, most confident first; under each what was said, how surely, and what it is."""
    images: Tensor = report["images"]
    shown = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return contact_sheet([([image], words) for image, words in zip(shown, captions(report), strict=True)], COLUMNS)


def captions(report: dict[str, Any]) -> list[str]:
    """What stands under each mistake, two lines."""
    return [_caption(report, index) for index in range(len(report["mistakes"]))]


def _upright(sheet: Image.Image, centre: float, top: float, text: str, letters: Any) -> None:
    """Text from below to above, its last letter at `top`."""
    strip = Image.new("L", (round(letters.getlength(text)) + 2, 2 * LETTER), 0)
    ImageDraw.Draw(strip).text((strip.width - 1, LETTER), text, 255, letters, anchor="rm")
    turned = strip.rotate(90, expand=True)
    sheet.paste("black", (round(centre - LETTER), round(top)), turned)


def _caption(report: dict[str, Any], index: int) -> str:
    own, said = report["mistakes"][index].tolist()
    sure = f"{float(report['confidence'][index]):.2f}"
    names = report["names"]
    if not report["multilabel"]:
        return f"said {_short(names[said], 10)} {sure}\nis {_short(names[own], 14)}"
    return (
        f"said {_short(names[said], 10)} {sure}\nis not" if own < 0 else f"said no {_short(names[own], 8)} {sure}\nis"
    )


def most_confused(report: dict[str, Any]) -> list[int]:
    """All classes if they are few; else those of the most frequent confusions, in the order of the classes."""
    every = len(report["names"])
    if every <= CLASSES:
        return list(range(every))
    chosen: list[int] = []
    for own, other, _ in report["confusions"].tolist():
        chosen += [it for it in (own, other) if it not in chosen]
        if len(chosen) >= CLASSES:
            break
    return sorted(chosen[:CLASSES]) or list(range(CLASSES))


def _part(report: dict[str, Any], chosen: list[int]) -> Tensor:
    """The counts `(n, n)` of these classes among themselves."""
    place = torch.full((len(report["names"]),), -1)
    place[chosen] = torch.arange(len(chosen))
    own, other, times = report["confusions"].unbind(1)
    inside = (place[own] >= 0) & (place[other] >= 0)
    matrix = report["counts"][chosen, 2].diag()
    matrix[place[own[inside]], place[other[inside]]] = times[inside]
    return matrix


def _short(name: str, length: int = 16) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
