"""The picture of guidance: which images layers find alike, without a guide, with one, and in the guide."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks.distillation.guidance import linear_cka

__all__ = ["draw"]

CLASSES, EACH, STEPS, WIDTH, DEPTH, RATE = 5, 8, 60, 48, 5, 2e-3


def draw() -> Figure:
    """Centred Gram matrices of 40 digits in the last hidden layer of a network that is trained, plain and guided."""
    images, targets = _digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU())
        guiding = nn.Sequential(*convolutions)(images).detach()
        layers = {"plain": _trained(images, targets, None), "guided": _trained(images, targets, guiding)}
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 1.5))
    panels = {
        "fully connected, plain": layers["plain"][0],
        "fully connected, guided": layers["guided"][0],
        "untrained convolutions, the guide": guiding,
    }
    for axes, (title, features) in zip(left.subplots(1, 3), panels.items(), strict=True):
        rows = features.flatten(1) - features.flatten(1).mean(dim=0)
        gram = rows @ rows.T
        largest = float(gram.abs().quantile(0.98))
        axes.imshow(gram, cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(title, fontsize=9)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel(f"CKA with the guide {linear_cka(features, guiding):.2f}", fontsize=9)
    axes = right.subplots()
    for name, colour in (("plain", "0.6"), ("guided", "C3")):
        path = [float(linear_cka(it, guiding)) for it in layers[name][1]]
        axes.plot(range(STEPS), path, colour, label=name)
    axes.set(xlabel="optimizer steps", ylabel="CKA with the guide", ylim=(0, 1), xlim=(0, STEPS))
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _digits() -> tuple[Tensor, Tensor]:
    """Images `(40, 1, 8, 8)` sorted by class."""
    pixels, labels = load_digits(return_X_y=True)
    places = [int(place) for label in range(CLASSES) for place in (labels == label).nonzero()[0][:EACH]]
    return torch.from_numpy(pixels[places]).float().view(-1, 1, 8, 8) / 8 - 1, torch.from_numpy(labels[places])


def _trained(images: Tensor, targets: Tensor, guiding: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """What the last hidden layer puts out after training, and before each step."""
    torch.manual_seed(0)
    hidden = [it for _ in range(DEPTH - 1) for it in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), *hidden)
    head = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=RATE)
    path = []
    for _ in range(STEPS):
        features = trunk(images)
        path.append(features.detach())
        loss = F.cross_entropy(head(features), targets)
        if guiding is not None:
            loss = loss + 1 - linear_cka(features, guiding)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trunk(images).detach(), path
