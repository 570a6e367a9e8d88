"""The picture of BornAgain: what three lessons say of one digit, and how accuracy comes back after each birth."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

from lightning_vision.callbacks.distillation.born_again import confidence_weights, permuted_dark_knowledge
from lightning_vision.callbacks.distillation.kd_loss import kd_loss
from lightning_vision.callbacks.hooks._begins_anew import drawn_anew

__all__ = ["draw"]

GENERATIONS, STEPS, HIDDEN, TRAINED, TEMPERATURE = 4, 80, 32, 200, 2.0

Weights = dict[str, Tensor]
Watch = Callable[[Weights], None]


def draw() -> Figure:
    """A perceptron on 200 digits in four generations; the digit of which the first is least sure."""
    bunch = load_digits()
    images, targets = torch.from_numpy(bunch.data).float() / 16, torch.from_numpy(bunch.target)
    (image, other), (target, wanted) = (it.split([TRAINED, len(it) - TRAINED]) for it in (images, targets))
    random = torch.Generator().manual_seed(0)
    start = {
        "hidden": torch.randn(HIDDEN, 64, generator=random) / 8,
        "head": torch.randn(10, HIDDEN, generator=random) / HIDDEN**0.5,
    }
    curve, ends = list[float](), list[Weights]()

    def watch(weights: Weights) -> None:
        curve.append(_accuracy(weights, other, wanted))

    for generation in range(GENERATIONS):
        weights = drawn_anew(start, torch.Generator().manual_seed(generation)) if generation else start
        teacher = _answers(ends[-1], image) if generation else None
        ends.append(_trained(weights, image, target, teacher, watch))
    answers = _answers(ends[0], image)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
    _lessons(left, image, target, answers)
    axes = right.subplots()
    axes.plot(range(1, len(curve) + 1), curve, "C0")
    for generation in range(GENERATIONS):
        axes.axvspan(generation * STEPS, (generation + 1) * STEPS, color="0.95" if generation % 2 else "1.0", zorder=0)
        axes.text((generation + 0.5) * STEPS, 0.04, f"generation {generation}", ha="center", fontsize=8)
    axes.set(xlabel="optimizer steps of one fit", ylabel="accuracy on unseen digits", ylim=(0, 1))
    axes.set_xlim(0, GENERATIONS * STEPS)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _lessons(figure: Figure, image: Tensor, target: Tensor, answers: Tensor) -> None:
    """One digit, and for each lesson the probabilities that it asks for."""
    weights = confidence_weights(answers, TEMPERATURE)
    shown = int(weights.argmin())
    teacher = answers[shown : shown + 1]
    permuted = permuted_dark_knowledge(teacher, torch.Generator().manual_seed(0))
    bars = {
        "kd": (teacher / TEMPERATURE).softmax(dim=1)[0],
        "dkpp": (permuted / TEMPERATURE).softmax(dim=1)[0],
        f"cwtm: times {float(weights[shown]):.2f}": F.one_hot(target[shown], 10).float(),
    }
    first, *others = figure.subplots(1, 4, width_ratios=(1.2, 1, 1, 1))
    first.imshow(image[shown].view(8, 8), cmap="gray_r")
    first.set(xticks=[], yticks=[], title=f"a {int(target[shown])}")
    for axes, (name, heights) in zip(others, bars.items(), strict=True):
        axes.barh(range(10), heights, color=["C3" if it == int(teacher.argmax()) else "C0" for it in range(10)])
        axes.set(yticks=range(10), xlim=(0, 1), xticks=[0, 1])
        axes.set_title(name, fontsize=8)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)


def _trained(weights: Weights, image: Tensor, target: Tensor, teacher: Tensor | None, watch: Watch) -> Weights:
    """After `STEPS` steps of gradient descent with momentum on all images at once."""
    weights = {name: it.clone().requires_grad_(True) for name, it in weights.items()}
    optimizer = torch.optim.SGD(weights.values(), lr=0.3, momentum=0.9)
    for _ in range(STEPS):
        logits = _answers(weights, image)
        loss = F.cross_entropy(logits, target)
        if teacher is not None:
            loss = 0.5 * loss + 0.5 * kd_loss(logits, teacher.detach(), TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch(weights)
    return {name: it.detach() for name, it in weights.items()}


def _answers(weights: Weights, image: Tensor) -> Tensor:
    return F.relu(image @ weights["hidden"].T) @ weights["head"].T


@torch.no_grad()
def _accuracy(weights: Weights, image: Tensor, target: Tensor) -> float:
    return float((_answers(weights, image).argmax(dim=1) == target).float().mean())
