"""The picture of TopKActivations: hidden activations of tokens, of which the largest go on."""

import torch
from matplotlib.figure import Figure

from lightning_vision.callbacks.pruning.top_k_activations import keep_top_k

__all__ = ["draw"]

TOKENS, FEATURES, KEPT = 12, 48, 6


def draw() -> Figure:
    """Tokens by features, dense and cut; and how much of each token's length is left for each k."""
    generator = torch.Generator().manual_seed(0)
    strength = torch.rand(FEATURES, generator=generator) ** 2
    hidden = (torch.randn(TOKENS, FEATURES, generator=generator) * (0.2 + 2 * strength)).relu()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    dense, cut, left = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    titles = (
        f"behind the ReLU: {float((hidden > 0).float().mean()):.0%} not zero",
        f"the {KEPT} largest of each token",
    )
    for axes, values, title in zip((dense, cut), (hidden, keep_top_k(hidden, KEPT)), titles, strict=True):
        axes.imshow(values, cmap="magma", vmin=0, vmax=float(hidden.max()), aspect="auto", interpolation="nearest")
        axes.set(xlabel="hidden feature", ylabel="token", xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
    counts = range(1, FEATURES + 1)
    shares = torch.stack([keep_top_k(hidden, k).norm(dim=1) / hidden.norm(dim=1) for k in counts])
    left.plot(counts, shares.numpy(), "0.8", linewidth=1)
    left.plot(counts, shares.mean(1), "C3", linewidth=2)
    left.axvline(KEPT, color="0.5", linestyle=":")
    left.set(xlabel="k", ylabel="length of the token's activation left", ylim=(0, 1.05), xlim=(1, FEATURES))
    left.spines[["top", "right"]].set_visible(False)
    return figure
