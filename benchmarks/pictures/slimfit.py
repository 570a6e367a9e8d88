"""The picture of SlimFit: which layers it freezes along training, and what is held of a row of activations."""

import math

import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks.finetuning._held_activations import Coded
from lightning_vision.callbacks.finetuning.slimfit import layers_that_move_least, relative_movement

from ._trained_digits import digits

__all__ = ["draw"]

LAYERS, INTERVALS, STEPS, RATE = 8, 60, 3, 0.5


def draw() -> Figure:
    """Distances by layer and interval, blank where it is frozen; a row in 8 and 4 bits."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    frozen, codes = figure.subplots(1, 2, width_ratios=(3, 2))
    image = frozen.imshow(_movements().T, aspect="auto", cmap="viridis", norm=LogNorm(), interpolation="nearest")
    frozen.set(xlabel=f"interval of {STEPS} steps", ylabel="layer, 1 at the images", yticks=range(LAYERS))
    frozen.set_yticklabels([str(number + 1) for number in range(LAYERS)])
    frozen.set_title("how far a layer moves; blank: frozen", fontsize=9)
    figure.colorbar(image, ax=frozen, label="d")
    row = torch.randn(1, 24, generator=torch.Generator().manual_seed(3)).sort().values
    codes.plot(row[0], "o", color="0.6", markersize=7, label="as it is")
    for bits, colour, marker in ((8, "C0", "+"), (4, "C3", "_")):
        coded = Coded(row, bits)
        label = f"{bits} bits: {coded.nbytes} bytes for {row.nbytes}"
        codes.plot(coded.read()[0], marker, color=colour, markersize=9, label=label)
    codes.set(xlabel="position in the row, sorted", ylabel="activation")
    codes.set_title("what is held of a row", fontsize=9)
    codes.legend(frameon=False, fontsize=8)
    codes.spines[["top", "right"]].set_visible(False)
    return figure


def _movements() -> Tensor:
    """By interval and layer, the distance; not a number where it was frozen."""
    images, labels = digits()
    found = torch.full((INTERVALS, LAYERS), math.nan)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64) for _ in range(LAYERS)]
        network = nn.Sequential(nn.Flatten(), *(it for layer in layers for it in (nn.LayerNorm(64), layer, nn.GELU())))
        head = nn.Linear(64, 10)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 0.002)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, INTERVALS * STEPS)
        distances = {str(number): math.inf for number in range(LAYERS)}
        for interval in range(INTERVALS):
            chosen = layers_that_move_least(distances, RATE)
            for number, layer in enumerate(layers):
                layer.requires_grad_(str(number) not in chosen)
            before = [[it.detach().clone() for it in layer.parameters()] for layer in layers]
            for _ in range(STEPS):
                batch = torch.randint(len(images), (64,))
                optimizer.zero_grad()
                F.cross_entropy(head(network(images[batch])), labels[batch]).backward()
                optimizer.step()
                schedule.step()
            for number, layer in enumerate(layers):
                if str(number) not in chosen:
                    moved = relative_movement(before[number], [it.detach() for it in layer.parameters()])
                    found[interval, number] = distances[str(number)] = moved.item()
    return found
