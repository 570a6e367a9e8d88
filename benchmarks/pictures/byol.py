"""The picture of BYOL: its two kinds of view of a photograph, and the momentum of the copy over a fit."""

import torch
from matplotlib.figure import Figure

from lightning_vision.self_supervised.schedules import cosine_ramp

from ._placed import show, two_views

__all__ = ["draw"]


def draw() -> Figure:
    """Left, views of a photograph that scikit-learn ships; right, tau by the share of the fit that is done."""
    from sklearn.datasets import load_sample_images

    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)[None].float() / 255
    square = torch.nn.functional.interpolate(photograph[..., 100:420], size=(40, 40), antialias=True, mode="bilinear")
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[6, 3])
    for row, (name, shown) in enumerate(
        zip(("view 1", "view 2"), two_views(square.repeat(4, 1, 1, 1), "byol", seed=2), strict=True)
    ):
        for column, image in enumerate(shown):
            show(left.add_subplot(2, 4, row * 4 + column + 1), image, "" if column else name)
    axes = right.add_subplot()
    for start in (0.98, 0.99, 0.996):
        axes.plot(
            [step / 100 for step in range(101)],
            [cosine_ramp(start, 1.0, step, 100) for step in range(101)],
            label=f"from {start}",
        )
    axes.set(xlabel="share of the fit", ylabel="tau")
    axes.legend(fontsize=8)
    return figure
