"""What the pictures of generation share: a small network that learns to make digits in seconds, and grids of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.generation.diffusion_model import DiffusionModel
from lightning_vision.generation.networks.conditions import Conditions
from lightning_vision.generation.processes.process import Process

from ._trained_digits import digits

__all__ = ["Layers", "grid_of", "trained", "training"]


class Layers(nn.Module):
    """Three layers of 256 numbers on the pixels of an image of 8 x 8, told time and label in each."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.conditions = Conditions(64, 10)
        self.layers = nn.ModuleList(nn.Linear(before, width) for before in (64, width, width))
        self.told = nn.ModuleList(nn.Linear(64, width) for _ in range(3))
        self.end = nn.Linear(width, 64)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        condition, hidden = F.silu(self.conditions(time, label)), x.flatten(1)
        for layer, told in zip(self.layers, self.told, strict=True):
            hidden = F.silu(layer(hidden) + told(condition))
        return self.end(hidden).view_as(x)


def training(process: Process, stops: Sequence[int], **settings: Any) -> Iterator[DiffusionModel]:
    """A model as it is after so many steps of 64 digits; its weights are those of an average."""
    images, labels = digits()
    data = 2 * images - 1
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionModel(Layers(), process, num_classes=10, in_channels=1, image_size=8, **settings)
        average = torch.optim.swa_utils.AveragedModel(
            model.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )
        adam = torch.optim.Adam(model.network.parameters(), 1e-3)
        for step in range(max(stops) + 1):
            if step in stops:
                trained = model.network
                model.network = average.module
                yield model
                model.network = trained
            batch = torch.randint(len(data), (64,))
            loss = model.losses(data[batch], labels[batch], torch.Generator().manual_seed(step))["loss"]
            adam.zero_grad()
            loss.backward()
            adam.step()
            average.update_parameters(model.network)


def trained(process: Process, steps: int = 1000, **settings: Any) -> DiffusionModel:
    """The model after all steps."""
    (model,) = training(process, [steps], **settings)
    return model


def grid_of(rows: Sequence[tuple[str, Tensor]], names: Sequence[str] = ()) -> Figure:
    """Rows of images of -1..1, `(N, 1, H, W)` each, with a name at the left, and names of columns above.

    Args:
        rows: Name and images.
        names: Of columns.
    """
    most = max(len(images) for _, images in rows)
    figure = Figure(figsize=(0.62 * most + 1.2, 0.66 * len(rows) + (0.3 if names else 0.1)), layout="constrained")
    axes: Any = figure.subplots(len(rows), most, squeeze=False)
    for line, (name, images) in zip(axes, rows, strict=True):
        for place, axis in enumerate(line):
            if place < len(images):
                axis.imshow(images[place, 0].clamp(-1, 1), cmap="gray_r", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    for axis, name in zip(axes[0], names, strict=False):
        axis.set_title(name, fontsize=8)
    return figure
