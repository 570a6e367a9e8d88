"""What the pictures of MixUp and CutMix share: eight digits and the sheet on which a mix of them is shown."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["eight_digits", "sheet"]


def eight_digits() -> tuple[Tensor, Tensor]:
    """The first digits 0 to 7 of scikit-learn: float `(8, 1, 8, 8)` in 0..1 and int64 `(8,)`."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels[:8]).float().view(8, 1, 8, 8) / 16, torch.from_numpy(labels[:8])


def sheet(images: Tensor, labels: Tensor, partner: Tensor, mixed: Tensor, lam: Tensor) -> Figure:
    """Three rows of eight: own images, partners, mixtures with what their labels are."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots(3, 8)
    for row, shown in enumerate((images, images[partner], mixed)):
        for column, image in enumerate(shown[:, 0]):
            axes[row, column].imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes[row, column].set(xticks=[], yticks=[])
    for name, row in zip(("own", "partner's", "mixed"), axes, strict=True):
        row[0].set_ylabel(name)
    for column, axis in enumerate(axes[2]):
        own, other, share = int(labels[column]), int(labels[partner[column]]), float(lam[column])
        axis.set_xlabel(f"{share:.2f} of {own}\n{1 - share:.2f} of {other}")
    return figure
