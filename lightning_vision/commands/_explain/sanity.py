"""`explain --mode sanity`: whether maps change when layers of the network are made random, from the top."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.callbacks.explain.sheet import overlay
from lightning_vision.commands._explain.methods import DEFAULT, MapMethod, map_methods
from lightning_vision.commands._explain.pictures import Cells, write_sheet, write_table
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.commands._report import print_table
from lightning_vision.explain.sanity_check import RandomisedLayer, randomised_layers

__all__ = ["FILES", "likeness", "write"]

FILES = ("sanity.png", "sanity.csv")
SHOWN = 8  # layers on the sheet, spread from the top to the bottom


def write(
    subject: Subject,
    folder: Path,
    files: Files,
    method: list[str] | str = DEFAULT,
    layer: str | None = None,
    class_index: int | str | None = None,
    sheet: int = 4,
) -> dict[str, Any]:
    """Compare the maps of the first `sheet` images with those of a network that is random from each layer upwards.

    Returns:
        `similarity`: of each method and layer the mean `spearman` and `ssim`, 1 where the map has not changed, of the
        maps that have one, and `zero`, the share of maps that are zero everywhere.

    Raises:
        ValueError: an option is out of its range, or a method cannot explain the network.
    """
    if sheet < 1:
        raise ValueError(f"--sheet {sheet}: at least one image must be looked at")
    asked = subject.asked_class(class_index)
    methods = map_methods(subject, method, layer)
    images = torch.cat([batch.images for batch in files.first(sheet)])
    classes = subject.classes(subject.probabilities(images), asked)
    pictures = subject.pixels(images)
    cells: Cells = []
    rows: list[tuple[str, str, float, float, float]] = []
    for it in methods:
        relevance = partial(_relevance, it, classes)
        found = randomised_layers(subject.module, relevance, images, seed=subject.seed)
        rows += [(it.name, entry.layer, *likeness(entry)) for entry in found]
        places = torch.linspace(0, len(found) - 1, min(SHOWN, len(found))).long().tolist()
        shown = [relevance(subject.module, images), *(found[place].maps for place in places)]
        titles = ["image", "trained", *(found[place].layer for place in places)]
        for row, picture in enumerate(pictures):
            drawn = [overlay(picture, maps[row].cpu().numpy()) for maps in shown]
            cells.append(
                ([picture, *drawn], f"{it.name} of {subject.names[int(classes[row])]}; random down to the layer above")
            )
    write_sheet(folder / FILES[0], cells, columns=1, titles=titles)
    write_table(folder / FILES[1], ("method", "layer", "spearman", "ssim", "zero"), rows)
    width = max(len(row[1]) for row in rows)
    table = {f"{name} {layer:{width}}": f"{rank:8.3f}{like:8.3f}{zero:8.0%}" for name, layer, rank, like, zero in rows}
    print_table(
        "likeness to the trained network's maps, random down to a layer: rank correlation, ssim, maps all 0", table
    )
    similarity: dict[str, dict[str, dict[str, float]]] = {}
    for name, layer_name, rank, like, zero in rows:
        similarity.setdefault(name, {})[layer_name] = {"spearman": rank, "ssim": like, "zero": zero}
    return {"similarity": similarity}


def _relevance(method: MapMethod, classes: Tensor, model: nn.Module, images: Tensor) -> Tensor:
    return method.relevance(method.maps(model, images, classes))


def likeness(entry: RandomisedLayer) -> tuple[float, float, float]:
    """Means of rank correlation, which a constant map does not have, and of ssim, and the share of maps all 0."""
    zero = (entry.maps == 0).flatten(1).all(1).float().mean()
    return float(entry.spearman.nanmean()), float(entry.ssim.nanmean()), float(zero)
