"""The picture of CollapseAlarm: spread and rank of a network that learns digits and of one that only agrees."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from matplotlib.figure import Figure
from torch import nn

from lightning_vision.callbacks import CollapseAlarm
from lightning_vision.callbacks.hooks.probing import Read

from ._trained_digits import digits

__all__ = ["draw"]

STEPS = 150


def draw() -> Figure:
    """Both numbers along 150 steps, with the thresholds."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    alarm = CollapseAlarm()
    least = {"spread": alarm.least_spread, "rank": alarm.least_rank}
    runs = {"learns ten classes": _numbers(alarm, False), "only makes halves agree": _numbers(alarm, True)}
    for axes, (key, limit) in zip(figure.subplots(1, 2), least.items(), strict=True):
        for name, numbers in runs.items():
            axes.plot([it[key] for it in numbers], linewidth=2, label=name)
        axes.axhline(limit, color="0.5", linestyle=":", label="alarm")
        axes.set(xlabel="optimizer steps", yscale="log", xlim=(0, STEPS), title=f"probe/collapse_{key}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def _numbers(alarm: CollapseAlarm, agree: bool) -> list[Mapping[str, float]]:
    images, labels = digits()
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        head = nn.Linear(32, 10)
        adam = torch.optim.Adam([*body.parameters(), *head.parameters()], 3e-3)
        for _ in range(STEPS):
            with torch.no_grad():
                found.append(alarm.measure(LightningModule(), Read(body(images[1000:]), None), None))
            batch = torch.randint(1000, (64,))
            features = body(images[batch])
            if agree:
                loss = 1 - F.cosine_similarity(*features.chunk(2)).mean()
            else:
                loss = F.cross_entropy(head(features), labels[batch])
            adam.zero_grad()
            loss.backward()
            adam.step()
    return found
