"""The picture of knowledge concentration: the pace of teachers, a student of two of them, and the grouped layer."""

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks import GroupedLinear
from lightning_vision.callbacks.distillation.knowledge_concentration import pace_weight, vertical_divergences

__all__ = ["draw"]

VERTICALS = {"0 to 4": [0, 1, 2, 3, 4], "5 to 9": [5, 6, 7, 8, 9]}
STEPS, PACE_STEPS = 200, 100


def draw() -> Figure:
    """The weight of a teacher, digits learned from two specialists at that pace, and which weights a last layer has."""
    figure = Figure(figsize=(11, 3.3))
    pace, run, layer = figure.subplots(1, 3, width_ratios=(1, 1.2, 1))
    for number, loss in enumerate((0.0, 0.5, 1.0, 2.0, 4.0)):
        weights = [float(pace_weight(torch.tensor(loss), step, PACE_STEPS)) for step in range(STEPS)]
        pace.plot(weights, f"C{number}", label=f"{loss:g} to learn")
    pace.set(xlabel="optimizer steps", ylabel="weight of a teacher", title="the pace, of 100 steps")
    pace.legend(frameon=False, fontsize="small", loc="center right")
    _draw_run(run)
    groups = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    grouped = GroupedLinear(groups, width=8, shared=4)
    layer.imshow(grouped.dense_weight().detach() != 0, cmap="Greys", vmin=0, vmax=2, aspect="auto")
    layer.set(xlabel="4 shared features, then 8 of each vertical", ylabel="class", title="weights of a GroupedLinear")
    layer.set_yticks(range(10))
    for axes in (pace, run):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _draw_run(axes: Axes) -> None:
    digits = load_digits()
    images, labels = torch.tensor(digits.data[:600]).float() / 16, torch.tensor(digits.target[:600])
    own = {name: torch.isin(labels, torch.tensor(classes)) for name, classes in VERTICALS.items()}
    said = {
        name: _taught(images[own[name]], labels[own[name]] - classes[0])(images).detach()
        for name, classes in VERTICALS.items()
    }
    # The second specialist is surer, and so is harder to follow at first.
    said["5 to 9"] *= 3
    student = _layer(10)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    left = {name: list[float]() for name in VERTICALS}
    weights = {name: list[float]() for name in VERTICALS}
    for step in range(STEPS):
        logits = student(images)
        loss = F.cross_entropy(logits, labels)
        for name, classes in VERTICALS.items():
            term = vertical_divergences(logits, said[name], classes, temperature=1.0)[own[name]].mean()
            weight = pace_weight(term, step, PACE_STEPS)
            loss = loss + weight * term
            left[name].append(term.item())
            weights[name].append(weight.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, colour in zip(VERTICALS, ("C0", "C3"), strict=True):
        axes.plot(left[name], colour, label=f"to learn of digits {name}")
        axes.plot(weights[name], colour, linestyle="--", label="weight of that teacher")
    axes.set(xlabel="optimizer steps", ylim=(0, None), title="a student of two specialists")
    axes.legend(frameon=False, fontsize="small")


def _layer(classes: int) -> nn.Linear:
    layer = nn.Linear(64, classes)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _taught(images: Tensor, labels: Tensor) -> nn.Linear:
    """A specialist: one layer, 100 steps on its own digits."""
    layer = _layer(5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(layer(images), labels).backward()
        optimizer.step()
    return layer
