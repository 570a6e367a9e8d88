"""The picture of ScheduledDropPath: the probability of every layer over the training, and the three rules of depth."""

import torch
from matplotlib.figure import Figure
from torchvision.models import convnext_tiny

from lightning_vision.backbones import create
from lightning_vision.callbacks.schedules._stretch import moved
from lightning_vision.callbacks.schedules.scheduled_drop_path import depth_shares, drop_probabilities

__all__ = ["draw"]

FINAL = 0.3


def draw() -> Figure:
    """ResNet-20; torchvision's ConvNeXt, which was built with rates up to 0.1 and whose first drop path has 0."""
    network = create("resnet20_cifar", num_classes=10, in_channels=3, drop_path_rate=0.1)
    built = drop_probabilities(network)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = [step / 100 for step in range(101)]
    for number, share in enumerate(depth_shares(built).values()):
        for shape, style in (("linear", "-"), ("cosine", ":")):
            label = shape if number == len(built) - 1 else None
            curve = [FINAL * share * moved(time, 0.0, 1.0, shape) for time in times]  # type: ignore[arg-type]
            left.plot(times, curve, style, color=f"C{number}", label=label)
    with torch.device("meta"):
        built = drop_probabilities(convnext_tiny(stochastic_depth_prob=0.1))
    layers = range(1, len(built) + 1)
    for depth in ("none", "index", "own"):
        shares = depth_shares(built, depth).values()  # type: ignore[arg-type]
        right.plot(layers, [FINAL * it for it in shares], "o-" if depth == "index" else "x--", label=f"depth: {depth}")
    right.plot(layers, list(built.values()), "k.:", label="as built")
    left.set(xlabel="share of the training", ylabel="drop probability", title="eight drop paths of ResNet-20")
    right.set(xlabel="drop path, first to last", title="18 of ConvNeXt, at the end of the training", ylim=(0, None))
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
