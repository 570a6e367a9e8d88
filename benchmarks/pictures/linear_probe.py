"""The picture of LinearProbe: the heads of its grid on two kinds of features, and the one that was chosen."""

import torch
from matplotlib.figure import Figure
from torch import Generator

from lightning_vision.callbacks import batches_of_an_epoch, head_scores, held_out, train_heads
from lightning_vision.callbacks.probes.linear_probe import PROTOCOLS

from ._trained_digits import digits, trained

__all__ = ["draw"]

BANK = 1000


def draw() -> Figure:
    """Accuracy of 13 heads on held-out training digits and on others, of pixels and of a trained network's features."""
    images, labels = digits()
    learnt = trained(labels, 10)[:-1]
    with torch.no_grad():
        spaces = {"pixels": images.flatten(1), "features of a trained network": learnt(images)}
    rates = PROTOCOLS["dinov2"]["rates"]
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (name, features) in zip(figure.subplots(1, 2, sharey=True), spaces.items(), strict=True):
        random = Generator().manual_seed(0)
        bank, known = features[:BANK], labels[:BANK]
        kept, apart = held_out(known, 0.1, random)
        start = 0.01 * torch.randn(features.shape[1], 10, generator=random)
        batches = [kept[it] for _ in range(10) for it in batches_of_an_epoch(len(kept), 128, random)]
        halved = [rate * 128 / 256 for rate in rates]
        heads = train_heads(bank, known, start, halved, [0.0] * len(rates), batches)
        chosen, losses = head_scores(bank[apart], known[apart], *heads)
        others, _ = head_scores(features[BANK:], labels[BANK:], *heads)
        best = max(range(len(rates)), key=lambda it: (float(chosen[it]), -float(losses[it])))
        axes.semilogx(rates, others, "C0-o", label="797 other digits", markersize=4)
        axes.semilogx(rates, chosen, "C1--s", label="100 held-out training digits", markersize=4)
        axes.axvline(rates[best], color="0.7", zorder=0)
        axes.annotate(
            f"chosen: {rates[best]:g}", (rates[best], 0.05), (-6, 0), textcoords="offset points", ha="right", fontsize=9
        )
        axes.set(xlabel="learning rate of batches of 256", title=name, ylim=(0, 1.02))
        axes.spines[["top", "right"]].set_visible(False)
        if name == "pixels":
            axes.legend(frameon=False, loc="upper left")
    figure.axes[0].set_ylabel("accuracy of a head")
    return figure
