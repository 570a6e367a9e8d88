"""The picture of BatchNormOnly: what two numbers a channel learn on random features, and what becomes of the scales."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_vision.callbacks.finetuning.batch_norm_only import random_entries

from ._trained_digits import digits

__all__ = ["draw"]

STEPS, EVERY = 240, 20
ARMS = {"everything": "0.5", "batch norm alone": "C3", "random weights": "C0"}


def draw() -> Figure:
    """Accuracy along training for three arms, and the scales that batch norm ends with."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    curves, scales = figure.subplots(1, 2)
    for arm, colour in ARMS.items():
        accuracies, gammas = _run(arm)
        curves.plot(range(0, STEPS + 1, EVERY), accuracies, colour, linewidth=2, label=arm)
        if arm != "random weights":
            share = (gammas.abs() < 0.01).float().mean()
            label = f"{arm}: {share:.0%} below 0.01"
            scales.hist(gammas.numpy(), bins=40, range=(-0.5, 2.0), color=colour, alpha=0.6, label=label)
    curves.set(xlabel="steps", ylabel="accuracy, digits not trained on", xlim=(0, STEPS), ylim=(0, 1))
    curves.legend(frameon=False, loc="lower right")
    scales.set(xlabel=r"scale $\gamma$", ylabel="channels")
    scales.set_title(r"scales at the end, drawn from [0, 1) at the start", fontsize=9)
    scales.legend(frameon=False, fontsize=8)
    for axes in (curves, scales):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _run(arm: str) -> tuple[list[float], Tensor]:
    """The accuracy after every few steps, and all scales at the end."""
    images, labels = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stages = [
            it
            for width, channels, stride in ((1, 32, 2), (32, 64, 1), (64, 64, 2))
            for it in (nn.Conv2d(width, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU())
        ]
        network = nn.Sequential(*stages, nn.Flatten(), nn.Linear(256, 10)).requires_grad_(arm == "everything")
        random = torch.Generator().manual_seed(0)
        norms = [it for it in network if isinstance(it, nn.BatchNorm2d)]
        for norm in norms:
            nn.init.uniform_(norm.weight)
            norm.requires_grad_(arm != "random weights")
        for layer in network:
            if arm == "random weights" and isinstance(layer, nn.Conv2d):
                mask = random_entries(layer.weight.shape, 2, random)
                layer.weight.requires_grad_(True).register_hook(mask.mul)
        trained = [it for it in network.parameters() if it.requires_grad]
        optimizer = torch.optim.Adam(trained, 0.003 if arm == "everything" else 0.02)
        accuracies = [_accuracy(network, images[1400:], labels[1400:])]
        for step in range(STEPS):
            batch = torch.randint(1400, (32,))
            optimizer.zero_grad()
            F.cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()
            if (step + 1) % EVERY == 0:
                accuracies.append(_accuracy(network, images[1400:], labels[1400:]))
    return accuracies, torch.cat([it.weight.detach() for it in norms])


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    right = (network(images).argmax(dim=1) == labels).float().mean().item()
    network.train()
    return right
