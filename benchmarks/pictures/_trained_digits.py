"""What the pictures of images made by optimisation share: a small network that read digits, and rows."""

from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

__all__ = ["digits", "rows_of", "trained"]


def digits() -> tuple[Tensor, Tensor]:
    """All of scikit-learn's digits, `(1797, 1, 8, 8)` from 0 to 1, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels)


def trained(labels: Tensor, classes: int) -> nn.Sequential:
    """Two convolutions and two layers, trained on the digits with these labels."""
    images, _ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Linear(64, classes),
        )
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(600):
            batch = torch.randint(len(images), (64,))
            adam.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            adam.step()
    return network.eval()


def rows_of(rows: list[tuple[str, Tensor, list[str]]]) -> Figure:
    """Rows of images with a name each, and a line under every image.

    Args:
        rows: Name, images `(N, C, H, W)` as pixels from 0 to 1, and N lines.
    """
    most = max(len(images) for _, images, _ in rows)
    figure = Figure(figsize=(1.1 * most, 1.5 * len(rows)), layout="constrained")
    axes: Any = figure.subplots(len(rows), most, squeeze=False)
    for line, (name, images, told) in zip(axes, rows, strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image, text in zip(line, images, told, strict=False):
            axis.set_axis_on()
            axis.imshow(image.permute(1, 2, 0), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(text, fontsize=8)
        line[0].set_ylabel(name, fontsize=9)
    return figure
