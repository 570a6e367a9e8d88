"""The picture of StyleAugment: a photograph in styles that noise has moved, and a strength that learns to hurt."""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from lightning_vision.callbacks.mixing.feature_style import StyleIntensity, restyle

__all__ = ["draw"]

STRENGTHS = (0.0, 0.1, 0.2, 0.3)


def draw() -> Figure:
    """Above a photograph whose own colours' style is moved with growing strength; below loss and strength by step."""
    photo = torch.from_numpy(load_sample_image("flower.jpg")[60:380, 120:440].copy()).permute(2, 0, 1).float() / 255
    photo = F.avg_pool2d(photo, 5)
    noise = torch.randn(2, 1, 3, 1, 1, generator=torch.Generator().manual_seed(5))
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for axes, strength in zip(above.subplots(1, 4), STRENGTHS, strict=True):
        shown = restyle(photo[None], strength * noise[0], strength * noise[1])[0]
        axes.imshow(shown.clamp(0, 1).permute(1, 2, 0), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title("as it is" if strength == 0 else f"noise of strength {strength:g}", fontsize=10)
    losses, strengths = _fought()
    left, right = below.subplots(1, 2)
    left.plot(losses, "C3")
    left.set(xlabel="step of the strength alone", ylabel="loss of a fixed classifier")
    right.plot(strengths.numpy())
    right.set(xlabel="step of the strength alone", ylabel="strength in each channel")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _fought() -> tuple[list[float], Tensor]:
    """Loss and strength of the mean, while the strength learns against a classifier that stands still."""
    generator = torch.Generator().manual_seed(0)
    maps, target = torch.rand(64, 4, 6, 6, generator=generator), torch.randint(4, (64,), generator=generator)
    maps += F.one_hot(target, 4)[:, :, None, None]
    intensity = StyleIntensity(4, 0.1)
    optimizer = torch.optim.SGD(intensity.parameters(), lr=0.1)
    head = nn.Linear(4, 4)
    with torch.no_grad():
        head.weight.copy_(torch.diag(torch.tensor([4.0, 3.0, 2.0, 0.5])))
        head.bias.zero_()
    losses, strengths = [], []
    for _ in range(60):
        noise = torch.randn(2, 64, 4, 1, 1, generator=generator)
        loss = F.cross_entropy(head(intensity(maps, noise, 1.0, 1e-6).mean((2, 3))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        strengths.append(intensity.mean.detach().clone())
    return losses, torch.stack(strengths)
