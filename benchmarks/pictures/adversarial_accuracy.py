"""The picture of adversarial accuracy: digits, the same after FGSM and after Carlini-Wagner, and how they are read."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks import carlini_wagner, fgsm

from ._trained_digits import digits, rows_of
from .defensive_distillation import trained_at

__all__ = ["draw"]

EPSILON, COUNT = 0.15, 8


def draw() -> Figure:
    """Eight digits that a small network reads, attacked in two ways."""
    images, labels = digits()
    network = trained_at(images.flatten(1), labels, 1.0, None)
    # One of each class as far as they reach.
    chosen = torch.stack([(labels == label).nonzero()[3, 0] for label in range(COUNT)])
    images, labels = images[chosen], labels[chosen]

    def answer(pixels: Tensor) -> Tensor:
        logits: Tensor = network(pixels.flatten(1))
        return logits

    step = fgsm(answer, images, labels, EPSILON)
    near = carlini_wagner(answer, images, labels, steps=30, searches=3, lr=0.05, first_c=1.0)
    rows = []
    for name, moved in (("as it is", images), (f"FGSM, {EPSILON}", step), ("C&W", near)):
        with torch.no_grad():
            said = answer(moved).argmax(1).tolist()
        lengths = (moved - images).flatten(1).norm(dim=1).tolist()
        told = [
            f"read as {it}" + (f"\nmoved {length:.2f}" if length else "")
            for it, length in zip(said, lengths, strict=True)
        ]
        rows.append((name, moved, told))
    return rows_of(rows)
