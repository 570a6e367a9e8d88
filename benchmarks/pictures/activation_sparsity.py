"""The picture of ActivationSparsity: how many hidden activations are not zero while a small network learns."""

from collections.abc import Iterator
from itertools import pairwise

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks.evaluation.activation_sparsity import count_nonzero

__all__ = ["draw"]

DEPTH, WIDTH, IMAGES, STEPS = 4, 64, 300, 60


def draw() -> Figure:
    """Each layer's share of activations that are not zero, along a training on 300 digits, with two weight decays."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, decay in zip(figure.subplots(1, 2, sharey=True), (0.0, 3.0), strict=True):
        shares = torch.tensor(list(_training(decay)))
        for layer in range(DEPTH):
            axes.plot(shares[:, layer] * 100, f"C{layer}", linewidth=2, label=f"hidden layer {layer + 1}")
        axes.axhline(50, color="0.7", linestyle=":")
        axes.set(xlabel="optimizer steps", ylim=(0, 80), xlim=(0, STEPS), title=f"weight decay {decay:g}")
        axes.label_outer()
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("not zero, %")
    figure.axes[0].legend(frameon=False, loc="lower left", ncols=2)
    return figure


def _training(decay: float) -> Iterator[list[float]]:
    """Before each step and after the last, the share of each hidden layer."""
    digits = load_digits()
    image = torch.tensor(digits.data[:IMAGES], dtype=torch.float32) / 8 - 1
    target = torch.tensor(digits.target[:IMAGES])
    generator = torch.Generator().manual_seed(0)
    weights = [
        nn.Parameter(torch.randn(out, into, generator=generator) * (2 / into) ** 0.5)
        for into, out in pairwise([64, *[WIDTH] * DEPTH, 10])
    ]
    optimizer = torch.optim.AdamW(weights, lr=3e-3, weight_decay=decay)
    for _ in range(STEPS + 1):
        hidden, shares = image, []
        for weight in weights[:-1]:
            hidden = (hidden @ weight.T).relu()
            shares.append(_share(hidden))
        yield shares
        optimizer.zero_grad()
        F.cross_entropy(hidden @ weights[-1].T, target).backward()
        optimizer.step()


def _share(hidden: Tensor) -> float:
    found, entries = count_nonzero(hidden.detach()).tolist()
    return float(found / entries)
