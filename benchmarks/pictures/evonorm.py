"""The picture of EvoNorm: what each layer makes of a channel, and what the rest of the batch has to say."""

import torch
from matplotlib.figure import Figure
from timm.layers import EvoNorm2dB0, EvoNorm2dS0
from torch import Tensor, nn

__all__ = ["draw"]

LAYERS = {
    "batch norm, ReLU": (lambda: nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), "0.5"),
    "EvoNorm-B0": (lambda: EvoNorm2dB0(8), "C0"),
    "EvoNorm-S0": (lambda: EvoNorm2dS0(8, groups=2), "C3"),
}


def draw() -> Figure:
    """Left: output by input, of one channel of a batch; right: one image's output as the others grow."""
    images = torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    curve, company = figure.subplots(1, 2)
    scales = torch.linspace(0.2, 4, 40)
    for name, (make, colour) in LAYERS.items():
        layer = make()
        x, y = images[:, 0].flatten(), layer(images)[:, 0].flatten().detach()
        order = x.argsort()
        curve.plot(x[order], y[order], ".", color=colour, markersize=2, label=name)
        company.plot(
            scales, [_change(layer, images, float(it)) for it in scales], color=colour, linewidth=2, label=name
        )
    curve.set(xlabel="value in front of the layer", ylabel="value behind it")
    curve.legend(frameon=False, markerscale=5)
    company.set(xlabel="the other images, times", ylabel="change of one image's output")
    company.legend(frameon=False)
    for axes in (curve, company):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


@torch.no_grad()
def _change(layer: nn.Module, images: Tensor, scale: float) -> float:
    """Mean absolute change of the first image's output when the other images are scaled."""
    others = torch.cat([images[:1], images[1:] * scale])
    return float((layer(others)[0] - layer(images)[0]).abs().mean())
