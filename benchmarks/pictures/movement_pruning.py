"""The picture of movement pruning: where each weight began, where it ended, and which ones stay."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks.pruning._scores import keep_largest
from lightning_vision.callbacks.pruning.movement import add_movement_scores

from ._trained_digits import digits

__all__ = ["draw"]

KEPT = 400


def draw() -> Figure:
    """The first layer of a perceptron that reads digits, which began with large weights, after 200 steps of SGD."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        weight = nn.init.normal_(network[1].weight, std=0.25)
        before, score = weight.detach().clone(), torch.zeros_like(weight)
        sgd = torch.optim.SGD(network.parameters(), lr=0.3)
        for _ in range(200):
            batch = torch.randint(len(images), (64,))
            sgd.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            assert weight.grad is not None
            add_movement_scores([score], [weight.detach()], [weight.grad])
            sgd.step()
    after, all_of_it = weight.detach(), {"": torch.ones_like(weight, dtype=torch.bool)}
    figure = Figure(figsize=(8.6, 3.9))
    ways = {"magnitude": after.abs(), "movement": score}
    for axes, (name, scores) in zip(figure.subplots(1, 2, sharey=True), ways.items(), strict=True):
        mask = keep_largest({"": scores}, all_of_it, KEPT)[""]
        for part, colour, label in ((~mask, "0.8", "pruned"), (mask, "C3", "kept")):
            axes.scatter(before[part], after[part], 5, colour, linewidths=0, label=label)
        axes.axline((0, 0), slope=1, color="k", linewidth=0.6, linestyle=":")
        axes.set(
            title=name, xlabel="weight before training", xlim=(-1, 1), ylim=(-1.2, 1.2), xticks=(-1, -0.5, 0, 0.5, 1)
        )
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("weight after 200 steps")
    figure.axes[1].legend(frameon=False, loc="upper left", markerscale=2)
    figure.tight_layout()
    return figure
