"""The picture of distillation: what a temperature lets a student hear, and what it pulls at."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks import kd_loss

__all__ = ["draw"]

# A digit that is a 3, might be an 8 or a 5, and is surely no 1.
TEACHER = torch.tensor([[-1.0, -5.0, 1.5, 8.0, -4.0, 4.0, -3.0, -1.5, 5.0, 1.0]])
TEMPERATURES = {1.0: "0.6", 4.0: "C3", 20.0: "C0"}


def draw() -> Figure:
    """A teacher's answer at three temperatures, and the gradient that each gives a student that knows nothing yet."""
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (temperature, colour) in enumerate(TEMPERATURES.items()):
        places = torch.arange(10) + 0.27 * (number - 1)
        left.bar(places, (TEACHER / temperature).softmax(dim=1)[0], 0.25, color=colour, label=f"T = {temperature:g}")
        student = torch.zeros(1, 10, requires_grad=True)
        (pull,) = torch.autograd.grad(-kd_loss(student, TEACHER, temperature), student)
        right.bar(places, pull[0], 0.25, color=colour)
    left.set(xlabel="class", ylabel="the teacher's probability", xticks=range(10))
    left.legend(frameon=False)
    right.set(xlabel="class", ylabel="pull on an untrained student's logit", xticks=range(10))
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
