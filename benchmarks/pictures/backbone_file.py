"""The picture of BackboneFile: what of a module's weights goes into the file."""

from matplotlib.figure import Figure
from torch import nn

from lightning_vision.backbones import create

__all__ = ["draw"]


def draw() -> Figure:
    """Weights of a learner with a projection head, by part; the file holds the backbone's."""
    backbone = create("resnet18", num_classes=0, in_channels=3)
    head = nn.Sequential(nn.Linear(512, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 128))
    parts = {name: sum(it.numel() for it in part.parameters()) for name, part in backbone.named_children()}
    parts = {f"backbone.{name}": count for name, count in parts.items() if count}
    parts["head"] = sum(it.numel() for it in head.parameters())
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    colours = ["C0" if name.startswith("backbone") else "0.75" for name in parts]
    bars = axes.barh(list(parts), [count / 1e6 for count in parts.values()], color=colours)
    axes.bar_label(bars, [f"{count / 1e6:.2f}" for count in parts.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="million weights of a learner on resnet18; blue: in backbone.safetensors")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
