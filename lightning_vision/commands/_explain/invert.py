"""`explain --mode invert`: images made again from what layers say of them, which shows what each keeps."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_vision.commands._explain.pictures import Cells, normalisation, write_sheet, write_table
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.commands._report import print_table
from lightning_vision.explain.network_inversion import invert_layer
from lightning_vision.inspection.layers import spatial_layer
from lightning_vision.inspection.maps import Layout, maps_or_none, tokens_before

__all__ = ["FILES", "write"]

FILES = ("invert.png", "invert.csv")
SHOWN = 4  # layers, if none is named


def write(
    subject: Subject, folder: Path, files: Files, layer: str | None = None, steps: int = 300, sheet: int = 8
) -> dict[str, Any]:
    """Invert a layer, or a few from early to late, for the first `sheet` images, side by side with them.

    Returns:
        `distance`: of each layer the mean of what is left between its outputs, as a share of their square.

    Raises:
        ValueError: an option is out of its range, there is no layer with maps, or images are outside the pixel range.
    """
    if sheet < 1:
        raise ValueError(f"--sheet {sheet}: at least one image must be inverted")
    layers = [layer] if layer is not None else _early_to_late(subject)
    cells: Cells = []
    rows: list[tuple[str, str, float, float]] = []
    for batch in files.first(sheet):
        made = [invert_layer(subject.module, batch.images, it, steps=steps, **normalisation(subject)) for it in layers]
        drawn = zip(subject.pixels(batch.images), *(subject.pixels(it.images) for it in made), strict=True)
        for row, (pictures, path) in enumerate(zip(drawn, batch.paths, strict=True)):
            told = [(float(it.distance[row]), float(it.error[row])) for it in made]
            distances, errors = (", ".join(f"{value:.2g}" for value in it) for it in zip(*told, strict=True))
            cells.append((list(pictures), f"{Path(path).name}\ndistance {distances}\nerror {errors}"))
            rows += [(path, name, *pair) for name, pair in zip(layers, told, strict=True)]
    write_sheet(folder / FILES[0], cells, columns=max(1, 8 // (1 + len(layers))), titles=["image", *layers])
    write_table(folder / FILES[1], ("path", "layer", "distance", "error"), rows)
    means = {name: float(torch.tensor([row[2] for row in rows if row[1] == name]).mean()) for name in layers}
    print_table("distance of the layer's outputs, 0 where all is kept", {it: f"{means[it]:.3g}" for it in layers})
    return {"distance": means}


def _early_to_late(subject: Subject) -> list[str]:
    """A few layers spread over the network: those that timm names, else the last one of each size of maps."""
    names = _told(subject.module)
    if len(names) < 2:
        sizes = _map_sizes(subject.module, subject.probe)
        names = list(dict.fromkeys({size: name for name, size in sizes.items()}.values()))
        # A transformer has one size throughout.
        names = names if len(names) > 1 else list(sizes)
    if not names:
        # It says why there is none.
        return [spatial_layer(subject.module, subject.probe)]
    places = torch.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().long().tolist()
    return [names[place] for place in places]


def _told(model: nn.Module) -> list[str]:
    """The layers that a network of timm offers as features."""
    for prefix, part in model.named_modules():
        told = getattr(part, "feature_info", None)
        if isinstance(told, list):
            inside = dict(part.named_modules())
            offered = [it["module"] for it in told if it.get("module") in inside]
            return list(dict.fromkeys(f"{prefix}.{it}" if prefix else it for it in offered))
    return []


def _map_sizes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """Layers that put out maps, in the order in which they end, and the height and width of their maps."""
    found: dict[str, tuple[int, int]] = {}
    size, layout = (images.shape[-2], images.shape[-1]), Layout(tokens_before(model), None)
    handles = []
    for name, part in model.named_modules():

        def keep(_part: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
            maps = maps_or_none(output, size, layout) if isinstance(output, Tensor) else None
            if maps is not None and len(output) == len(images):
                found.pop(name, None)
                found[name] = (maps.shape[-2], maps.shape[-1])

        if name and not isinstance(part, nn.Identity | nn.Dropout | nn.Dropout2d):
            handles.append(part.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
