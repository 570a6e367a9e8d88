"""The picture of a data diet: digits of highest and lowest EL2N after two epochs, and all scores."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import nn

from lightning_vision.callbacks.curation.scores import el2n, hardest_samples

__all__ = ["draw"]


def draw() -> Figure:
    """A small network, two epochs on scikit-learn's digits; the half of highest score is kept."""
    pixels, classes = load_digits(return_X_y=True)
    images, labels = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(classes)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.1, generator=generator)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    for _ in range(2):
        for batch in torch.randperm(len(images), generator=generator).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
    scores = el2n(network(images), labels).detach()
    kept = hardest_samples(scores, 0.5)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
    ranked = scores.argsort()
    for row, (shown, name) in enumerate(((ranked.flip(0)[:9], "highest"), (ranked[:9], "lowest"))):
        for column, index in enumerate(shown.tolist()):
            axes = left.add_subplot(2, 9, 9 * row + column + 1)
            axes.imshow(images[index, 0], cmap="gray_r")
            axes.set(xticks=[], yticks=[], title=str(int(labels[index])), xlabel=f"{float(scores[index]):.2f}")
            if column == 0:
                axes.set_ylabel(name)
    axes = right.subplots()
    bins = [it / 50 for it in range(72)]
    axes.hist([scores[kept], scores[ranked[: len(scores) - len(kept)]]], bins, stacked=True, color=["C3", "0.8"])
    axes.set(xlabel="EL2N after two epochs", ylabel="digits", yscale="log")
    axes.legend(["kept", "left out"], frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
