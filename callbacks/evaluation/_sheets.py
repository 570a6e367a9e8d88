"""The pictures of a report: the confusion matrix and the sheet of the worst mistakes."""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

__all__ = ["confusion_sheet", "mistake_sheet"]

CLASSES = 24  # of which a matrix is still readable
COLUMNS = 6


def confusion_sheet(report: dict[str, Any]) -> Figure:
    """The matrix of counts, coloured by their share of a class; of many classes the most confused ones."""
    chosen = _most_confused(report)
    matrix, every = _part(report, chosen), len(report["names"])
    names = [_short(report["names"][it]) for it in chosen]
    # Inches; a layout engine would measure the letters, which takes as long as drawing them.
    margin, inside = 0.55 + 0.075 * max(map(len, names)), 0.34 * max(len(chosen), 5)
    side = margin + inside + 0.35
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((margin / side, margin / side, inside / side, inside / side))
    images = report["counts"][chosen, 0].clamp_min(1)
    share = matrix / images[:, None]
    # The root, so that a rare confusion is seen beside the diagonal.
    axes.imshow(share.sqrt(), cmap="Blues", vmin=0, vmax=1)
    for row, column in matrix.nonzero().tolist():
        dark = share[row, column] > 0.4
        number = int(matrix[row, column])
        text = f"{number}" if number < 10_000 else f"{number // 1000}k"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set(ylabel="class", xlabel="taken for")
    if len(chosen) < every:
        axes.set_title(f"the {len(chosen)} most confused of {every:,} classes", fontsize=9)
    return figure


def mistake_sheet(report: dict[str, Any]) -> Figure:
    """The kept mistakes, most confident first; under each what was said, how surely, and what it is."""
    images: Tensor = report["images"]
    count, channels, height, width = images.shape
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    # One picture for all: a sheet of axes takes ten times as long.
    gap = max(1, width // 8)
    line = max(1, round(0.42 * width))
    sheet = np.full((rows * (height + line) + gap, columns * (width + gap) + gap, channels), 255, dtype=np.uint8)
    scale = 1.25 / (width + gap)  # inches a pixel
    figure = Figure(figsize=(sheet.shape[1] * scale, sheet.shape[0] * scale))
    axes = figure.add_axes((0, 0, 1, 1))
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = index // columns * (height + line) + gap, index % columns * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
        caption = _caption(report, index)
        axes.text(
            left + width / 2 - 0.5,
            top + height + 0.02 * width,
            caption,
            ha="center",
            va="top",
            fontsize=7.5,
            linespacing=1.1,
        )
    axes.imshow(sheet.squeeze(2) if channels == 1 else sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()
    return figure


def _caption(report: dict[str, Any], index: int) -> str:
    own, said = report["mistakes"][index].tolist()
    sure = f"{float(report['confidence'][index]):.2f}"
    names = report["names"]
    if not report["multilabel"]:
        return f"said {_short(names[said], 10)} {sure}\nis {_short(names[own], 14)}"
    return (
        f"said {_short(names[said], 10)} {sure}\nis not" if own < 0 else f"said no {_short(names[own], 8)} {sure}\nis"
    )


def _most_confused(report: dict[str, Any]) -> list[int]:
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
