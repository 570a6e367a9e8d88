"""The picture of DynamicMasks: which filters hold the mass of some digits, what a predictor says, and the saving."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_vision.callbacks.pruning.dynamic_masks import FilterPredictor, mass_target

__all__ = ["draw"]

FILTERS, SHOWN, RATIO = 24, 20, 0.8


def draw() -> Figure:
    """Masses of filters by image, the smallest set of `RATIO`, a predictor's set, and filters kept for each ratio."""
    image = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
    layer = nn.Conv2d(FILTERS, FILTERS, 3)
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(FILTERS, 1, 3, 3, generator=generator) * 0.5
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * 0.1
    layer.bias.data = torch.randn(FILTERS, generator=generator) * 0.5
    with torch.no_grad():
        given = F.conv2d(image, first).relu()
        heat = layer(given).relu()
    wanted = mass_target(heat, RATIO)
    asked = _predicted(given, wanted)
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    *maps, saving = figure.subplots(1, 4)
    mass = heat.sum((2, 3))
    shown = (mass / mass.sum(1, keepdim=True), wanted.float(), asked.float())
    right = float((asked == wanted).float().mean())
    titles = ("mass of each filter", f"smallest set of {RATIO:.0%}", f"predicted ({right:.0%} right)")
    for axes, values, title in zip(maps, shown, titles, strict=True):
        axes.imshow(values[-SHOWN:], cmap="magma", aspect="auto", interpolation="nearest")
        axes.set(xlabel="filter", xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
    maps[0].set_ylabel("image")
    ratios = [it / 20 for it in range(1, 21)]
    kept = torch.stack([mass_target(mass, it).float().mean(1) for it in ratios]) * 100
    saving.plot(ratios, kept.mean(1), "C3", linewidth=2)
    saving.fill_between(ratios, kept.quantile(0.05, 1), kept.quantile(0.95, 1), color="C3", alpha=0.15, linewidth=0)
    saving.axvline(RATIO, color="0.5", linestyle=":")
    saving.set(xlabel="ratio r", ylabel="filters kept, % (90% of images)", ylim=(0, 100), xlim=(0, 1))
    saving.spines[["top", "right"]].set_visible(False)
    return figure


def _predicted(given: Tensor, wanted: Tensor) -> Tensor:
    predictor, pooled = FilterPredictor(FILTERS, FILTERS), given.amax((2, 3))
    optimizer = torch.optim.Adam(predictor.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(predictor(pooled), wanted.float()).backward()
        optimizer.step()
    return predictor(pooled) > 0
