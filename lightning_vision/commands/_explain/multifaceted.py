"""`explain --mode multifaceted`: the several kinds of images that a class answers to, begun from a folder's images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.commands._explain.pictures import (
    Cells,
    chosen_units,
    normalisation,
    write_sheet,
    write_table,
)
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.explain.multifaceted import visualise_facets

__all__ = ["FILES", "write"]

FILES = ("multifaceted.png", "multifaceted.csv")
# Images of highest activation that are grouped; no more are held in memory.
TOP = 300
FEWEST = 4  # that can be laid out in a plane


def write(
    subject: Subject,
    folder: Path,
    files: Files,
    class_index: int | str | list[int | str] | None = None,
    facets: int = 4,
    features: str | None = None,
    steps: int = 200,
) -> dict[str, Any]:
    """Group the images that raise a class's logit most and climb from the mean of each group; all classes by default.

    Returns:
        `facets`: of each class how many images each of its pictures stands for.

    Raises:
        ValueError: there is no such class or layer, or there are too few images.
    """
    if features is not None:
        subject.check_layer(features)
    numbers, names = chosen_units(subject, class_index, None, None)
    least = max(FEWEST, facets)
    if (count := len(files.paths)) < least:
        raise ValueError(f"--mode multifaceted needs {least} images or more, and {files.folder} holds {count}")
    cells: Cells = []
    rows: list[tuple[str, int, int, float, float]] = []
    for number, name in zip(numbers, names, strict=True):
        images = _favourites(subject, files, number, least)
        made = visualise_facets(
            subject.module, images, number, facets=facets, features=features, steps=steps, **normalisation(subject)
        )
        sizes = made.facet.bincount(minlength=facets).tolist()
        pictures = zip(subject.pixels(made.means), subject.pixels(made.images), strict=True)
        for facet, pair in enumerate(pictures):
            cells.append((list(pair), f"{name}, facet {facet + 1}\nof {sizes[facet]} images"))
            rows.append((name, facet + 1, sizes[facet], float(made.start[facet]), float(made.end[facet])))
    write_sheet(folder / FILES[0], cells, columns=min(facets, 4))
    write_table(folder / FILES[1], ("class_name", "facet", "images", "start", "end"), rows)
    return {"facets": {name: [row[2] for row in rows if row[0] == name] for name in names}}


@torch.no_grad()
def _favourites(subject: Subject, files: Files, number: int, least: int) -> Tensor:
    """The images of the largest logits of a class, as many as are taken for it and at least some, `(n, C, H, W)`."""
    kept, scores, taken = torch.empty(0, *subject.shape), torch.empty(0), 0
    for batch in files:
        logits = subject.module(batch.images)
        taken += int((logits.argmax(1) == number).sum())
        kept, scores = torch.cat([kept, batch.images.cpu()]), torch.cat([scores, logits[:, number].cpu()])
        best = scores.argsort(descending=True, stable=True)[:TOP]
        kept, scores = kept[best], scores[best]
    return kept[: max(taken, least)]
