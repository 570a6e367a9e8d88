"""Two digits side by side, what a teacher of single digits says of every place, and the labels of crops."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from lightning_vision.classification.score_maps import score_maps
from lightning_vision.datamodules import label_pooling

from ._trained_digits import digits

__all__ = ["draw"]

SHOWN = (13, 1779)
SIDE, STEPS = 16, 500
# Left, top, right and bottom of crops in the canvas of two digits.
BOXES = [(0, 0, 32, 16), (1, 1, 14, 15), (18, 1, 31, 15), (9, 3, 23, 13)]
COLOURS = ("tab:orange", "tab:red", "tab:green", "tab:blue")


def draw() -> Figure:
    """The canvas with its boxes, its label map, and every crop over the probabilities of its label."""
    images, labels = digits()
    teacher = _taught(images, labels)
    canvas = torch.cat([F.pad(images[number], (4, 4, 4, 4)) for number in SHOWN], 2)
    with torch.no_grad():
        maps = score_maps(teacher, canvas[None])
    boxes = torch.tensor(BOXES, dtype=torch.float32)
    found = label_pooling(maps.expand(len(boxes), -1, -1, -1), boxes, (SIDE, 2 * SIDE))
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    grid: Any = figure.add_gridspec(2, 12, height_ratios=(1.1, 1))
    axis = figure.add_subplot(grid[0, :6])
    axis.imshow(canvas[0], cmap="gray")
    for (left, top, right, bottom), colour in zip(BOXES, COLOURS, strict=True):
        corner = (left - 0.5, top - 0.5)
        axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=2))
    axis.set_title("an image of two digits, and crops of it", fontsize=10)
    _label_map(figure.add_subplot(grid[0, 6:]), maps[0])
    for number, ((left, top, right, bottom), colour) in enumerate(zip(BOXES, COLOURS, strict=True)):
        crop = figure.add_subplot(grid[1, 3 * number])
        crop.imshow(canvas[0, top:bottom, left:right], cmap="gray", vmin=0, vmax=1)
        crop.set(xticks=[], yticks=[])
        for spine in crop.spines.values():
            spine.set(color=colour, linewidth=2)
        bars = figure.add_subplot(grid[1, 3 * number + 1 : 3 * number + 3])
        bars.bar(range(10), found[number].numpy(), color=colour)
        bars.set(ylim=(0, 1), xticks=range(10), yticks=[0, 1])
        bars.tick_params(labelsize=7)
        bars.set_title("its label", fontsize=9)
    for axis in figure.axes[:2]:
        axis.set(xticks=[], yticks=[])
    return figure


def _label_map(axis: Any, maps: Tensor) -> None:
    """The best class of every cell, paler where others score nearly as much."""
    shares = maps.softmax(0)
    best, which = shares.max(0)
    axis.imshow(best, cmap="Greys", vmin=0, vmax=1.6, aspect="equal")
    for row, column in torch.cartesian_prod(*(torch.arange(side) for side in which.shape)).tolist():
        axis.text(column, row, int(which[row, column]), ha="center", va="center", fontsize=9)
    axis.set_title("the label map: the best class of every cell", fontsize=10)


class _Averaging(nn.Module):
    """Convolutions, a mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 64)
        layers: list[nn.Module] = []
        for number, (narrow, wide) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.BatchNorm2d(wide), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if number == 1 else []
        self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 10)

    def forward_features(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)
        return maps

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.forward_features(images).mean((2, 3)))
        return logits


def _taught(images: Tensor, labels: Tensor) -> _Averaging:
    """A network that has seen single digits on canvases, anywhere."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _Averaging()
        adam = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(STEPS):
            batch = torch.randint(len(images), (64,))
            left, top = torch.randint(0, SIDE - 7, (2,)).tolist()
            canvas = F.pad(images[batch], (left, SIDE - 8 - left, top, SIDE - 8 - top))
            adam.zero_grad()
            F.cross_entropy(network(canvas), labels[batch]).backward()
            adam.step()
    return network.eval()
