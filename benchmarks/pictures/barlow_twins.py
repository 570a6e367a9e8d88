"""Cross-correlations of twelve features of two views before and after gradient descent on the loss of Barlow Twins."""

import torch
from matplotlib.figure import Figure

from lightning_vision.self_supervised.barlow_twins import barlow_twins_loss, cross_correlation

__all__ = ["draw"]

IMAGES, FEATURES, STEPS = 256, 12, (0, 15, 60, 400)


def draw() -> Figure:
    """A linear layer on numbers of which two views share a half; columns: the matrix after so many steps."""
    random = torch.Generator().manual_seed(0)
    common, own = torch.randn(IMAGES, 16, generator=random), torch.randn(2, IMAGES, 16, generator=random)
    views = [torch.cat([common, noise], 1) for noise in own]
    weight = (0.3 * torch.randn(32, FEATURES, generator=random) + 0.3).requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=0.02)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = iter(figure.subplots(1, len(STEPS)))
    for step in range(STEPS[-1] + 1):
        first, second = (view @ weight for view in views)
        terms = barlow_twins_loss(first, second, 0.05)
        if step in STEPS:
            axis = next(axes)
            matrix = cross_correlation(first, second).detach().numpy()
            image = axis.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=f"{step} steps", xlabel=f"loss {terms['loss'].item():.2f}")
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    return figure
