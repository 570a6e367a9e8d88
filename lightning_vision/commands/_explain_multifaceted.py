"""`explain --mode multifaceted`: the several kinds of images that a class answers to, begun from a folder's images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.commands._explain_pictures import (
    Cells,
    chosen_units,
    normalisation,
    write_sheet,
    write_table,
)
from lightning_vision.commands._explain_subject import Files, Subject
from lightning_vision.explain.multifaceted import visualise_facets
from lightning_vision.layers import class_scores

__all__ = ["FILES", "write"]

FILES = ("multifaceted.png", "multifaceted.csv")
# The paper groups so many images of highest activation; no more are held in memory.
TOP = 300


def write(
    subject: Subject,
    folder: Path,
    files: Files,
    class_index: int | str | list[int | str] | None = None,
    facets: int = 4,
    steps: int = 200,
) -> dict[str, Any]:
    """Group the images that raise a class's logit most and climb from the mean of each group; all classes by default.

    Returns:
        `facets`: of each class how many images each of its pictures stands for.

    Raises:
        ValueError: there is no such class, or there are too few images.
    """
    numbers, names = chosen_units(subject, class_index, None, None)
    if (count := len(files.paths)) < max(4, facets):
        raise ValueError(f"--mode multifaceted needs {max(4, facets)} images or more, and {files.folder} holds {count}")
    cells: Cells = []
    rows: list[tuple[str, int, int, float, float]] = []
    for number, name in zip(numbers, names, strict=True):
        images = _favourites(subject, files, number)
        made = visualise_facets(subject.module, images, number, facets=facets, steps=steps, **normalisation(subject))
        sizes = made.facet.bincount(minlength=facets).tolist()
        pictures = zip(subject.pixels(made.means), subject.pixels(made.images), strict=True)
        for facet, pair in enumerate(pictures):
            cells.append((list(pair), f"{name}, facet {facet + 1}\nof {sizes[facet]} images"))
            rows.append((name, facet + 1, sizes[facet], float(made.start[facet]), float(made.end[facet])))
    write_sheet(folder / FILES[0], cells, columns=min(facets, 4))
    write_table(folder / FILES[1], ("class_name", "facet", "images", "start", "end"), rows)
    return {"facets": {name: [row[2] for row in rows if row[0] == name] for name in names}}


@torch.no_grad()
def _favourites(subject: Subject, files: Files, number: int) -> Tensor:
    """The images of the largest logits of a class, `(n, C, H, W)`."""
    kept, scores = torch.empty(0), torch.empty(0)
    for batch in files:
        logits = class_scores(subject.module(batch.images), number)[0].cpu()
        images = batch.images.cpu()
        kept, scores = (torch.cat(it) if len(it[0]) else it[1] for it in ((kept, images), (scores, logits)))
        best = scores.argsort(descending=True, stable=True)[:TOP]
        kept, scores = kept[best], scores[best]
    return kept
