"""Why residuals are scaled: how a signal grows through twenty untrained blocks of Inception-ResNet-v2."""

import torch
from matplotlib.figure import Figure
from timm.models.inception_resnet_v2 import Block17
from torch import nn

__all__ = ["draw"]

SCALES = (1.0, 0.3, 0.1, 0.0)
DEPTH = 20


def draw() -> Figure:
    """Standard deviation of the activations behind each block, for four residual scales."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = [Block17(scale=1.0) for _ in range(DEPTH)]
        for block in blocks:
            nn.init.kaiming_normal_(block.conv2d.weight)
        image = torch.randn(4, 1088, 5, 5).relu()
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for colour, scale in enumerate(SCALES):
        signal, spread = image, [image.std().item()]
        for block in blocks:
            block.scale = scale
            with torch.no_grad():
                signal = block(signal)
            spread.append(signal.std().item())
        axes.plot(range(DEPTH + 1), spread, f"C{colour}o-", markersize=3, label=f"residual_scale {scale:g}")
    axes.set(xlabel="block", ylabel="standard deviation", ylim=(0, None), xticks=range(0, DEPTH + 1, 5))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
