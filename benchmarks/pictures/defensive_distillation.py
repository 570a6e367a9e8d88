"""The picture of defensive distillation: on the way from one digit to another, what a network says and its slope."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks import tempered_cross_entropy

from ._trained_digits import digits

__all__ = ["draw", "trained_at"]

TEMPERATURE, STEPS, POINTS = 50.0, 150, 121


def draw() -> Figure:
    """A straight line from a three to an eight: the probability of the three, and the gradient of its loss."""
    images, labels = digits()
    images = images.flatten(1)
    plain = trained_at(images, labels, 1.0, None)
    teacher = trained_at(images, labels, TEMPERATURE, None)
    student = trained_at(images, labels, TEMPERATURE, teacher)
    three, eight = (images[labels == label][5] for label in (3, 8))
    way = torch.linspace(0, 1, POINTS)
    line = torch.lerp(three, eight, way[:, None])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, network, colour in (("as it is", plain, "C0"), (f"taught at T = {TEMPERATURE:.0f}", student, "C3")):
        probability, slope = _along(network, line)
        left.plot(way, probability, colour, label=name)
        right.plot(way, slope.clamp(min=1e-38), colour, label=name)
    left.set(xlabel="from a three to an eight", ylabel="probability of the three, at T = 1")
    right.set(xlabel="from a three to an eight", ylabel="|gradient| of the loss in the image", yscale="log")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _along(network: nn.Module, line: Tensor) -> tuple[Tensor, Tensor]:
    given = line.clone().requires_grad_(True)
    logits = network(given)
    loss = F.cross_entropy(logits, torch.full((len(line),), 3), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, given)
    return logits.detach().softmax(1)[:, 3], gradient.norm(dim=1)


def trained_at(images: Tensor, labels: Tensor, temperature: float, teacher: nn.Module | None) -> nn.Module:
    """One hidden layer, trained on digits `(N, 64)` at a temperature, by their labels or by a teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        adam = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(STEPS):
            batch = torch.randint(len(images), (64,))
            logits = network(images[batch])
            if teacher is None:
                loss = F.cross_entropy(logits / temperature, labels[batch])
            else:
                loss = tempered_cross_entropy(logits, teacher(images[batch]).detach(), temperature)
            adam.zero_grad()
            loss.backward()
            adam.step()
    return network
