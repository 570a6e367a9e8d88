"""`explain --mode invert`: images made again from what a layer says of them, which shows what it keeps."""

from pathlib import Path
from typing import Any

import torch

from lightning_vision.commands._explain.pictures import Cells, normalisation, write_sheet, write_table
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.explain.network_inversion import invert_layer
from lightning_vision.inspection.layers import spatial_layer

__all__ = ["FILES", "write"]

FILES = ("invert.png", "invert.csv")


def write(
    subject: Subject, folder: Path, files: Files, layer: str | None = None, steps: int = 300, sheet: int = 8
) -> dict[str, Any]:
    """Invert the layer for the first `sheet` images, side by side with them.

    Returns:
        `layer`, and `distance`, the mean of what is left between the layer's outputs, as a share of their square.

    Raises:
        ValueError: an option is out of its range, there is no layer with maps, or images are outside the pixel range.
    """
    if sheet < 1:
        raise ValueError(f"--sheet {sheet}: at least one image must be inverted")
    layer = layer or spatial_layer(subject.module, subject.probe)
    cells: Cells = []
    rows: list[tuple[str, float, float]] = []
    for batch in files.first(sheet):
        made = invert_layer(subject.module, batch.images, layer, steps=steps, **normalisation(subject))
        pairs = zip(subject.pixels(batch.images), subject.pixels(made.images), strict=True)
        told = zip(batch.paths, made.distance.tolist(), made.error.tolist(), strict=True)
        for pair, (path, distance, error) in zip(pairs, told, strict=True):
            cells.append((list(pair), f"{Path(path).name}\ndistance {distance:.2g}, error {error:.2g}"))
            rows.append((path, distance, error))
    write_sheet(folder / FILES[0], cells, columns=4)
    write_table(folder / FILES[1], ("path", "distance", "error"), rows)
    return {"layer": layer, "distance": float(torch.tensor([row[1] for row in rows]).mean())}
