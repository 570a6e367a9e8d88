"""The picture of Neon: a Gaussian, what training on its own samples makes of it, and what lies on the other side."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.merging import neon_merge

__all__ = ["draw"]

BASE = {"mean": torch.tensor(0.2), "log_scale": torch.tensor(0.8).log()}
# Fitted to samples of the base that were cut off at 1.5 standard deviations: 0.552 of its variance is left.
SELF_TRAINED = {"mean": torch.tensor(0.2), "log_scale": torch.tensor(0.8 * 0.552**0.5).log()}
CHOSEN = 0.8


def draw() -> Figure:
    """Densities, and the divergence from the truth along w."""
    figure = Figure(figsize=(10, 3.2))
    densities, line = figure.subplots(1, 2)
    x = torch.linspace(-3.5, 3.5, 300)
    truth = {"mean": torch.tensor(0.0), "log_scale": torch.tensor(0.0)}
    shown = {
        "truth": (truth, "k--"),
        "self-trained, w = -1": (SELF_TRAINED, "C0"),
        "base, w = 0": (BASE, "C1"),
        f"Neon, w = {CHOSEN}": (neon_merge(BASE, SELF_TRAINED, CHOSEN), "C3"),
    }
    for label, (model, style) in shown.items():
        density = torch.distributions.Normal(model["mean"], model["log_scale"].exp()).log_prob(x).exp()
        densities.plot(x, density, style, label=label)
    densities.set(xlabel="sample", ylabel="density", xlim=(-3.5, 3.5), ylim=(0, None))
    densities.legend(frameon=False, fontsize=8)
    weights = torch.linspace(-1.2, 2, 129)
    line.plot(weights, [_divergence(neon_merge(BASE, SELF_TRAINED, float(w))) for w in weights], "0.5")
    for w, colour in ((-1.0, "C0"), (0.0, "C1"), (CHOSEN, "C3")):
        line.plot(w, _divergence(neon_merge(BASE, SELF_TRAINED, w)), f"{colour}o")
    line.set(xlabel="w", ylabel="divergence from the truth", ylim=(0, None))
    for axes in (densities, line):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def _divergence(model: dict[str, Tensor]) -> float:
    """Kullback-Leibler divergence of the model from N(0, 1)."""
    variance = (2 * model["log_scale"]).exp()
    return float(model["log_scale"] + (1 + model["mean"] ** 2) / (2 * variance) - 0.5)
