"""The picture of feature merging: how many features a layer has left along the threshold, with and without copies."""

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks.pruning import feature_complexity

__all__ = ["draw"]

SIZE = 24


def draw() -> Figure:
    """A layer of random units, and one in which half are copies of others with a little noise."""
    random = torch.Generator().manual_seed(0)
    images = torch.zeros(2, 1, 4, 8)
    figure = Figure(figsize=(6.5, 3.2))
    axes = figure.subplots()
    betas = [it / 40 for it in range(41)]
    for noise, label, colour in ((None, "independent units", "0.5"), (0.2, "half of them noisy copies", "C3")):
        network = nn.Sequential(nn.Linear(8, SIZE), nn.ReLU(), nn.Linear(SIZE, 4)).requires_grad_(False)
        for it in network.parameters():
            it.copy_(torch.randn(it.shape, generator=random))
        if noise is not None:
            for it, dim in ((network[0].weight, 0), (network[0].bias, 0), (network[2].weight, 1)):
                first, second = it.movedim(dim, 0).chunk(2)
                second.copy_(first + noise * torch.randn(first.shape, generator=random))
        left = [feature_complexity(network, images, beta)["0"].complexity for beta in betas]
        axes.step(betas, left, colour, where="post", label=label)
    axes.set(xlabel="threshold beta", ylabel="features left", ylim=(0, SIZE + 1), xlim=(0, 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
