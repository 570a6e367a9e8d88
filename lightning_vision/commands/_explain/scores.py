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
        `scores`: of each method the mean `insertion`, large where it is good, and `deletion`, small where it is good.

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
    rows: list[tuple[str, str, float, float]] = []
    for batch in files:
        classes = subject.classes(subject.probabilities(batch.images), asked)
        for it in methods:
            maps = it.relevance(it.maps(subject.module, batch.images, classes))
            found = [score(subject.module, batch.images, maps, classes, count) for score in (insertion, deletion)]
            rows += [(path, it.name, float(a), float(b)) for path, a, b in zip(batch.paths, *found, strict=True)]
    write_table(folder / FILES[0], ("path", "method", "insertion", "deletion"), rows)
    means = {}
    for it in methods:
        own = torch.tensor([row[2:] for row in rows if row[1] == it.name]).mean(0).tolist()
        means[it.name] = {"insertion": own[0], "deletion": own[1]}
    shown = {name: f"{own['insertion']:10.3f}{own['deletion']:10.3f}" for name, own in means.items()}
    heading = f"area under the class probability, mean of {len(rows) // len(methods)} images"
    print_table(heading, {"method": f"{'insertion':>10}{'deletion':>10}", **shown})
    return {"scores": means}
