"""The picture of FeatureGates: gates of a digit's pixels and of numbers that say nothing, while they learn."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks.pruning.feature_gates import gated

__all__ = ["draw"]

EPOCHS, GATE_LR = 20, 0.03


def draw() -> Figure:
    """Scores along training, and at its end as the image that they weigh."""
    path = _scores()
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    lines, pixels, noise = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    for place, (colour, label) in enumerate((("C3", "pixels of digits"), ("0.5", "normal numbers"))):
        scores = path[:, 64 * place : 64 * (place + 1)]
        lines.plot(scores, colour, linewidth=0.5, alpha=0.35)
        lines.plot(scores.mean(1), colour, linewidth=2.5, label=f"{label}, mean")
    lines.set(xlabel="steps", ylabel=r"score $\sigma(w)$", ylim=(0, 1.02), xlim=(0, len(path) - 1))
    lines.legend(frameon=False, loc="lower left")
    lines.spines[["top", "right"]].set_visible(False)
    for axes, title, values in ((pixels, "pixels", path[-1, :64]), (noise, "normal numbers", path[-1, 64:])):
        shown = axes.imshow(values.view(8, 8), cmap="viridis", vmin=0.3, vmax=1)
        axes.set_title(f"{title}, in the end", fontsize=10)
        axes.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=[pixels, noise], shrink=0.8)
    return figure


def _scores() -> Tensor:
    """Scores `(steps + 1, 128)` of 64 pixels and of as many normal numbers; they step after the weights."""
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.tensor(digits.data, dtype=torch.float32)[:512]
    pixels = (pixels - pixels.mean(0)) / pixels.std(0).clamp(min=0.1)
    data, labels = torch.cat([pixels, torch.randn(pixels.shape)], dim=1), torch.tensor(digits.target)[:512]
    network, raw = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)), torch.zeros(128)
    weights, gates = torch.optim.Adam(network.parameters(), lr=1e-3), torch.optim.Adam([raw], lr=GATE_LR)
    path = [raw.sigmoid()]
    for _ in range(EPOCHS):
        for image, target in zip(data.split(64), labels.split(64), strict=True):
            weights.zero_grad()
            F.cross_entropy(network(gated(image, raw, channel=1)), target).backward()
            weights.step()
            raw.requires_grad_(True)
            (raw_gradient,) = torch.autograd.grad(F.cross_entropy(network(gated(image, raw, channel=1)), target), raw)
            raw.requires_grad_(False)
            raw.grad = raw_gradient
            gates.step()
            path.append(raw.sigmoid())
    return torch.stack(path)
