"""The picture of HardBatches: losses of two epochs' batches, and which of them come again."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.curation.hard_batches import hardest_batches

__all__ = ["draw"]

BATCHES, DELTA = 20, 0.3


def draw() -> Figure:
    """Two epochs of twenty batches with losses that fall; the six hardest of each come again."""
    random = np.random.default_rng(3)
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    start = 0
    for epoch in range(2):
        losses = torch.from_numpy(1.6 * 0.97 ** np.arange(start, start + BATCHES) * random.uniform(0.7, 1.3, BATCHES))
        hard = hardest_batches(losses, torch.arange(BATCHES).float(), DELTA).tolist()
        colours = ["C3" if it in hard else "0.75" for it in range(BATCHES)]
        axes.bar(range(start, start + BATCHES), losses, color=colours)
        again = losses[hard] * 0.8
        axes.bar(range(start + BATCHES, start + BATCHES + len(hard)), again, color="C3", alpha=0.5)
        for place, batch in enumerate(hard):
            axes.text(start + BATCHES + place, float(again[place]), str(batch), ha="center", va="bottom", fontsize=8)
        axes.text(start, 2.05, f"epoch {2 * epoch}: all batches", fontsize=9)
        axes.text(start + BATCHES - 0.4, 1.9, f"epoch {2 * epoch + 1}:\nthe hardest again", fontsize=9)
        start += BATCHES + len(hard)
    axes.set(xlabel="mini-batches trained on", ylabel="loss", ylim=(0, 2.2), xlim=(-0.6, start - 0.4))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
