"""The picture of MEAL V2: what three teachers and their mean say of a digit, and how the discriminator loses."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks.distillation.kd_loss import kd_loss, mean_logits
from lightning_vision.callbacks.distillation.meal_v2 import AnswerDiscriminator, discriminator_loss

__all__ = ["draw"]

TRAINED, SHOWN, STEPS = 200, 1000, 250


def draw() -> Figure:
    """Three networks of width 128 that learned 200 digits teach one of width 16 about 1,000, without labels."""
    pixels, labels = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels[:SHOWN]).float() / 16, torch.from_numpy(labels[:SHOWN])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teachers = [_network(128) for _ in range(3)]
        student, judge = _network(16), AnswerDiscriminator(10, 64)
    for network in [*teachers, student]:
        _descend([network], 60, lambda network=network: F.cross_entropy(network(images[:TRAINED]), labels[:TRAINED]))
    with torch.no_grad():
        answers = [network(images) for network in teachers]
    mean = mean_logits(answers)
    each = torch.stack([answer.softmax(dim=1) for answer in answers])
    # Where teachers differ most from their mean.
    disputed = int((each - mean.softmax(dim=1)).abs().sum(dim=(0, 2)).argmax())
    before = student(images).softmax(dim=1).detach()[disputed]
    told: list[Tensor] = []

    def step() -> Tensor:
        logits = student(images)
        with torch.no_grad():
            sides = [judge(it.log_softmax(dim=1)).sigmoid().mean() for it in (logits, mean)]
        told.append(torch.stack(sides))
        return kd_loss(logits, mean, 1.0) + discriminator_loss(judge, logits, mean)

    _descend([student, judge], STEPS, step)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    picture, bars, lines = figure.subplots(1, 3, width_ratios=(0.7, 1.7, 1.3))
    picture.imshow(images[disputed].view(8, 8), cmap="gray_r")
    picture.set(xticks=[], yticks=[], xlabel=f"labelled {int(labels[disputed])}")
    classes = torch.arange(10)
    for place, probabilities in enumerate(each[:, disputed]):
        bars.bar(classes - 0.3 + 0.2 * place, probabilities, 0.18, color=f"{0.55 + 0.15 * place}")
    bars.bar(classes + 0.3, mean.softmax(dim=1)[disputed], 0.18, color="C0", label="mean of the three")
    after = student(images).softmax(dim=1).detach()[disputed]
    bars.plot(classes, before, "C1_", markersize=12, label="student before")
    bars.plot(classes, after, "C3_", markersize=12, markeredgewidth=2, label="student after")
    bars.set(xticks=classes, xlabel="class", ylabel="probability")
    bars.legend(frameon=False, fontsize=8)
    for curve, name, colour in zip(torch.stack(told).T, ("student's", "teachers' mean"), ("C3", "C0"), strict=True):
        lines.plot(curve, colour, label=f"of the {name} answers")
    lines.axhline(0.5, color="0.6", linewidth=0.8)
    lines.set(xlabel="steps", ylabel="discriminator: a teacher's")
    lines.legend(frameon=False, fontsize=8)
    for axes in (bars, lines):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _network(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def _descend(networks: list[nn.Module], steps: int, loss: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.Adam([it for network in networks for it in network.parameters()], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
