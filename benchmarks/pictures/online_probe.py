"""The picture of OnlineProbe: what a linear classifier says of two kinds of features while it learns."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from lightning_vision.callbacks import OnlineProbe

from ._trained_digits import digits, trained

__all__ = ["draw"]

TRAIN, BATCH, STEPS = 1000, 64, 200


def draw() -> Figure:
    """Shares of right answers on 797 digits, by their pixels and by a network's features, along its steps."""
    images, labels = digits()
    network = trained(labels % 2, 2)[:-1]
    with torch.no_grad():
        learnt = network(images)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    named = {"pixels": images.flatten(1), "features of a network that learned odd from even": learnt}
    for name, features in named.items():
        axes.plot(_shares(features, labels), linewidth=2, label=name)
    axes.axhline(0.1, color="0.7", linestyle=":")
    axes.set(xlabel="steps of the classifier", ylabel="right of ten digits", ylim=(0, 1), xlim=(0, STEPS))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.72))
    return figure


def _shares(features: torch.Tensor, labels: torch.Tensor) -> list[float]:
    probe, generator = OnlineProbe(num_classes=10, lr=3e-3), torch.Generator().manual_seed(0)
    probe.begin(features)
    shares = []
    for _ in range(STEPS):
        batch = torch.randint(TRAIN, (BATCH,), generator=generator)
        probe.step(probe.gradient(features[batch], labels[batch]))
        answers = F.pad(features[TRAIN:], (0, 1), value=1.0) @ probe.kept()["head"]
        shares.append(float((answers.argmax(1) == labels[TRAIN:]).double().mean()))
    return shares
