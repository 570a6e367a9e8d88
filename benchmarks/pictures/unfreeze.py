"""The picture of Unfreeze: which group trains when, and how far each has moved from where it was pretrained.

A network of four layers has learnt the digits 0 to 4 and is fine-tuned on 5 to 9, all at once or group by group.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks.finetuning._groups import thawed
from lightning_vision.callbacks.finetuning.slimfit import relative_movement

from ._trained_digits import digits

__all__ = ["draw"]

NAMES = ("head", "block 3", "block 2", "block 1")
EPOCHS, STEPS = 6, 12
COLOURS = ("C3", "C1", "C2", "C0")


def draw() -> Figure:
    """The plan beside the paths of both ways to fine-tune."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    plan, paths = figure.subplots(1, 2, width_ratios=(2, 3))
    ends = range(1, len(NAMES))
    for row, (name, colour) in enumerate(zip(NAMES, COLOURS, strict=True)):
        for epoch in range(EPOCHS):
            trained = thawed([(it,) for it in NAMES[:-1]], ends, epoch)
            awake = trained is None or name in trained
            plan.barh(row, 0.94, left=epoch + 0.03, color=colour if awake else "0.9")
            plan.text(epoch + 0.5, row, "trains" if awake else "frozen", ha="center", va="center", fontsize=7)
    plan.set(yticks=range(len(NAMES)), yticklabels=NAMES, xlabel="epoch", xlim=(0, EPOCHS), title="the plan")
    plan.spines[:].set_visible(False)
    for gradual, style in ((False, ":"), (True, "-")):
        for name, colour, path in zip(NAMES, COLOURS, _movements(gradual), strict=True):
            steps = [number / STEPS for number in range(len(path))]
            label = f"{name}{'' if gradual else ', all at once'}"
            paths.plot(steps, path, style, color=colour, linewidth=2 if gradual else 1.2, label=label)
    paths.set(xlabel="epoch", ylabel="moved, share of its weights", xlim=(0, EPOCHS), ylim=(0, None))
    paths.set_title("how far each group is from pretraining")
    paths.legend(frameon=False, fontsize=7, ncols=2)
    paths.spines[["top", "right"]].set_visible(False)
    return figure


def _movements(gradual: bool) -> list[list[float]]:
    """By group from the head down, its distance from the pretrained weights after each step."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 5)]
        network = nn.Sequential(nn.Flatten(), *(it for layer in layers[:-1] for it in (layer, nn.ReLU())), layers[-1])
        _train(network, list(network.parameters()), images[labels < 5], labels[labels < 5], 150)
        nn.init.normal_(layers[-1].weight, std=0.1)
        groups = layers[::-1]
        before = [[it.detach().clone() for it in group.parameters()] for group in groups]
        paths = [[0.0] for _ in groups]
        for epoch in range(EPOCHS):
            awake = groups[: epoch + 1] if gradual else groups
            for _ in range(STEPS):
                parameters = [it for group in awake for it in group.parameters()]
                _train(network, parameters, images[labels > 4], labels[labels > 4] - 5, 1)
                for path, start, group in zip(paths, before, groups, strict=True):
                    path.append(relative_movement(start, [it.detach() for it in group.parameters()]).item())
    return paths


def _train(network: nn.Module, parameters: list[nn.Parameter], images: Tensor, labels: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(parameters, 0.2)
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        network.zero_grad()
        F.cross_entropy(network(images[batch]), labels[batch]).backward()
        optimizer.step()
