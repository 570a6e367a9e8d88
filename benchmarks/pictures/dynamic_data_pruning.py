"""The picture of DynamicDataPruning: groups of losses, the window over them, and what each epoch visits."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.curation.dynamic_data_pruning import loss_groups, random_part, window_at

__all__ = ["draw"]

SAMPLES, GROUPS, EPOCHS, PRUNED = 2000, 10, 16, 14
SCALE, RATIO = 0.5, 0.1


def draw() -> Figure:
    """Losses drawn from an exponential, ten groups of them; sixteen epochs of the shipped setting, delta 0.875."""
    losses = torch.from_numpy(np.random.default_rng(0).exponential(0.5, SAMPLES))
    group = loss_groups(losses, GROUPS)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    edges = np.linspace(0, float(losses.max()), 60)
    left.hist([losses[group == it] for it in range(GROUPS)], edges, stacked=True, color=_colours(GROUPS))
    left.set(xlabel="last loss", ylabel="samples", title="groups by k-means")
    shares = []
    for epoch in range(EPOCHS):
        kept = random_part(SAMPLES, RATIO if epoch else 0.0, np.random.default_rng(epoch))
        window = window_at(epoch - 1, GROUPS, SCALE) if 0 < epoch < PRUNED else range(GROUPS)
        own = group[kept]
        inside = (own >= window.start) & (own < window.stop)
        shares.append(float(inside.sum()) / SAMPLES)
        for it in range(GROUPS):
            right.barh(it, 0.9, left=epoch + 0.05, height=0.9, color=_colours(GROUPS)[it] if it in window else "0.93")
        right.text(epoch + 0.5, GROUPS - 0.2, f"{100 * shares[-1]:.0f}", ha="center", fontsize=8)
    right.set(
        xlabel="epoch", ylabel="group, easy to hard", title="window; percent of the samples above", xlim=(0, EPOCHS)
    )
    right.set_ylim(-0.6, GROUPS + 0.6)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colours(count: int) -> list[tuple[float, float, float]]:
    """From blue for the easiest to red for the hardest."""
    return [(it / (count - 1), 0.35, 1 - it / (count - 1)) for it in range(count)]
