"""`explain --mode maps`: where in the images of a folder the evidence for a class lies."""

import csv
from pathlib import Path
from typing import Any

from PIL import Image

from lightning_vision.classification.records import prediction_records
from lightning_vision.commands._explain.methods import DEFAULT, MapMethod, map_methods
from lightning_vision.commands._explain.page import Page
from lightning_vision.commands._explain.pictures import Cells, write_sheet
from lightning_vision.commands._explain.subject import Files, Subject

__all__ = ["FILES", "write"]

FILES = ("index.html", "sheet.png", "explain.csv", "maps")
COLUMNS = ("path", "class_name", "probability", "explained", "explained_probability", "target_name", "image")
# Samples in a row of the sheet with one map; with more maps there are fewer.
WIDE = 8


def write(
    subject: Subject,
    folder: Path,
    files: Files,
    method: list[str] | str = DEFAULT,
    layer: str | None = None,
    class_index: int | str | None = None,
    top_k: int = 5,
    sheet: int = 16,
) -> dict[str, Any]:
    """Write the page, its pictures, the sheet and the table, a batch of images at a time.

    Returns:
        `count`, the images explained, and `accuracy` of those whose class is known, None where there is none.

    Raises:
        ValueError: an option is out of its range, or a method cannot explain the network.
    """
    if top_k < 1:
        raise ValueError(f"--top_k is {top_k}; give at least 1")
    if sheet < 0:
        raise ValueError(f"--sheet is {sheet}; give at least 0, which draws none")
    asked = subject.asked_class(class_index)
    methods = map_methods(subject, method, layer)
    (folder / "maps").mkdir()
    cells: Cells = []
    count, known, right = 0, 0, 0
    with (
        Page(folder / "index.html", [it.name for it in methods], subject.shape[2]) as page,
        (folder / "explain.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as rows,
    ):
        table = csv.writer(rows, lineterminator="\n")
        table.writerow([*COLUMNS, *(it.name for it in methods)])
        for batch in files:
            probabilities = subject.probabilities(batch.images)
            classes = subject.classes(probabilities, asked)
            pictures = subject.pixels(batch.images)
            drawn = {}
            for it in methods:
                maps = it.maps(subject.module, batch.images, classes).cpu().numpy()
                drawn[it.name] = [it.paint(picture, values) for picture, values in zip(pictures, maps, strict=True)]
            records = prediction_records(probabilities.cpu(), batch.index, subject.names, batch.paths, top_k)
            for row, record in enumerate(records):
                stem, target = f"maps/{record['index']:06d}", batch.targets[row]
                shown = {"image": pictures[row], **{name: maps[row] for name, maps in drawn.items()}}
                named = {name: f"{stem}_{name}.png" for name in shown}
                for name, picture in shown.items():
                    Image.fromarray(picture).save(folder / named[name], compress_level=1)
                explained = int(classes[row])
                page.add(record, named, subject.names[explained], target)
                best, own = record["top_k"][0]["probability"], record["probabilities"][explained]
                said = [record["path"], record["class_name"], best, subject.names[explained], own, target]
                table.writerow([*said, *named.values()])
                if count < sheet:
                    caption = _caption(record["class_name"], best, target)
                    if asked is not None and not all(it.class_free for it in methods):
                        caption += f"\nmap of {subject.names[asked]} ({own:.2f})"
                    cells.append((list(shown.values()), caption))
                count, known = count + 1, known + (target is not None)
                right += target == record["class_name"]
        page.finish(
            f"{count} image{'' if count == 1 else 's'} of {files.folder}, explained",
            _about(subject, methods, asked, known, right),
        )
    if cells:
        columns = max(1, WIDE // (1 + len(methods)))
        write_sheet(folder / "sheet.png", cells, columns, titles=["image", *(it.name for it in methods)])
    return {"count": count, "accuracy": right / known if known else None}


def _caption(said: str, probability: float, target: str | None) -> str:
    return f"said {said} ({probability:.2f})" + ("" if target is None else f"\nis {target}")


def _about(subject: Subject, methods: list[MapMethod], asked: int | None, known: int, right: int) -> list[str]:
    """What a reader has to know to read the page."""
    what = "the class that was predicted" if asked is None else f"the class {subject.names[asked]}"
    free = all(it.class_free for it in methods)
    told = "The maps are the same whatever the class." if free else f"Each map explains {what}."
    lines = [f"Checkpoint {subject.path}. {told}", *(it.told for it in methods)]
    calibrated = "calibrated" if subject.calibrated else "not calibrated"
    lines.append(f"Bars are the probabilities of the classes; this checkpoint is {calibrated}.")
    if known:
        lie, were = ("image that lies", "was") if known == 1 else ("images that lie", "were")
        lines.append(f"{right} of {known} {lie} in a folder named as a class {were} named right.")
    return lines
