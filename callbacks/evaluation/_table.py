"""A report of a classifier in words: a table a class, worst first, and the most frequent confusions."""

import csv
from pathlib import Path
from typing import Any

import torch

__all__ = ["Row", "rows_of", "told", "write_csv"]

ROWS, CONFUSIONS = 20, 5
COLUMNS = ("class", "images", "predicted", "right", "precision", "recall", "f1")
# Where an image may have several labels; also the report's keys.
MORE = ("average_precision", "threshold")
# Name, images, predicted, right, precision, recall, F1, and the columns of `MORE` that there are.
Row = tuple[str, int, int, int, float, float, float, tuple[float, ...]]


def rows_of(report: dict[str, Any]) -> list[Row]:
    """A row a class, in the order of the classes; ratios without anything to count are 0."""
    images, predicted, right = report["counts"].double().unbind(1)
    precision, recall = right / predicted.clamp_min(1), right / images.clamp_min(1)
    f1 = 2 * right / (images + predicted).clamp_min(1)
    ratios = torch.stack([precision, recall, f1], 1).tolist()
    counts = report["counts"].tolist()
    more = list(zip(*(report[it] for it in _more(report)), strict=True)) or [()] * len(counts)
    columns = zip(report["names"], counts, ratios, more, strict=True)
    return [(name, *count, *ratio, rest) for name, count, ratio, rest in columns]


def write_csv(report: dict[str, Any], file: Path) -> None:
    """Write the rows of all classes, ratios with six digits."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow([*COLUMNS, *_more(report)])
        for name, images, predicted, right, *ratios, rest in rows_of(report):
            writer.writerow([name, images, predicted, right, *(f"{it:.6f}" for it in (*ratios, *rest))])


def told(report: dict[str, Any], heading: str) -> str:
    """Heading, at most `ROWS` classes with the lowest F1 first, and the most frequent confusions."""
    every = [row for row in rows_of(report) if row[1] or row[2]]
    shown = sorted(every, key=lambda row: (row[6], -row[1]))[:ROWS]
    width = max([5, *(min(len(row[0]), 32) for row in shown)])
    lines = [f"{heading}: {_total(report)}"]
    left = "" if len(every) == len(shown) else f" (the worst {len(shown)} of {len(every)})"
    more = _more(report)
    head = f"{'class':{width}} {'images':>7} {'precision':>9} {'recall':>7} {'f1':>7}"
    lines.append("  ".join([head, *more]) + left)
    for name, images, _, _, precision, recall, f1, rest in shown:
        cells = [f"{value:{len(title)}.3f}" for title, value in zip(more, rest, strict=True)]
        row = f"{name[:32]:{width}} {images:7,} {precision:9.3f} {recall:7.3f} {f1:7.3f}"
        lines.append("  ".join([row, *cells]))
    names = report["names"]
    pairs = [
        f"{names[own]} for {names[other]} ({times:,} of {int(report['counts'][own, 0]):,})"
        for own, other, times in report["confusions"][:CONFUSIONS].tolist()
    ]
    if pairs:
        lines.append(f"most often taken: {', '.join(pairs)}")
    return "\n".join(lines)


def _more(report: dict[str, Any]) -> tuple[str, ...]:
    return tuple(it for it in MORE if it in report)


def _total(report: dict[str, Any]) -> str:
    images, predicted, right = report["counts"].sum(0).tolist()
    if report["multilabel"]:
        return f"{images:,} labels, {predicted:,} predicted, {right:,} of them right"
    return f"{images:,} images, {right / max(images, 1):.2%} right"
