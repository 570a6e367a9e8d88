"""`explain --mode scores`: whether the pixels that a method calls important decide what the network says."""

from pathlib import Path
from typing import Any

import torch

from lightning_vision.commands._explain.methods import DEFAULT, map_methods
from lightning_vision.commands._explain.pictures import write_table
from lightning_vision.commands._explain.subject import Files, Subject
from lightning_vision.commands._report import print_table
from lightning_vision.explain.insertion_deletion import deletion, insertion

__all__ = ["FILES", "write"]

FILES = ("scores.csv",)
STEPS = 64
RANDOM = "random"


def write(
    subject: Subject,
    folder: Path,
    files: Files,
    method: list[str] | str = DEFAULT,
    layer: str | None = None,
    class_index: int | str | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Write both areas of each image and method, and print the methods' means.

    Returns:
        `scores`: of each method, and of `random` maps, the mean `insertion`, large where it is good, and `deletion`,
        small where it is good.

    Raises:
        ValueError: an option is out of its range, a method cannot explain the network, or its classes share no softmax.
    """
    subject.check_shares("scores")
    pixels = subject.shape[1] * subject.shape[2]
    count = min(STEPS, pixels) if steps is None else steps
    if not 1 <= count <= pixels:
        raise ValueError(f"--steps {count}: an image of {pixels} pixels changes in 1 to {pixels} steps")
    asked = subject.asked_class(class_index)
    methods = map_methods(subject, method, layer)
    # What a map that knows nothing gets, for scores say little by themselves.
    generator = torch.Generator().manual_seed(subject.seed)
    names = [*(it.name for it in methods), RANDOM]
    rows: list[tuple[str, str, float, float]] = []
    for batch in files:
        classes = subject.classes(subject.probabilities(batch.images), asked)
        maps_of = [it.relevance(it.maps(subject.module, batch.images, classes)) for it in methods]
        maps_of.append(torch.rand(len(batch.images), *subject.shape[1:], generator=generator).to(batch.images.device))
        for name, maps in zip(names, maps_of, strict=True):
            found = [score(subject.module, batch.images, maps, classes, count) for score in (insertion, deletion)]
            rows += [(path, name, float(a), float(b)) for path, a, b in zip(batch.paths, *found, strict=True)]
    write_table(folder / FILES[0], ("path", "method", "insertion", "deletion"), rows)
    means = {}
    for name in names:
        own = torch.tensor([row[2:] for row in rows if row[1] == name]).mean(0).tolist()
        means[name] = {"insertion": own[0], "deletion": own[1]}
    shown = {name: f"{own['insertion']:10.3f}{own['deletion']:10.3f}" for name, own in means.items()}
    count = len(rows) // len(names)
    heading = f"area under the class probability, mean of {count} image{'' if count == 1 else 's'}"
    print_table(heading, {"method": f"{'insertion':>10}{'deletion':>10}", **shown})
    return {"scores": means}
