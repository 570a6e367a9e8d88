"""What pictures of learners without labels share: placed digits, and views of them."""

import torch
from matplotlib.axes import Axes
from torch import Tensor

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.views import views_for

__all__ = ["placed_digits", "show", "two_views"]


def placed_digits(count: int) -> Tensor:
    """The first validation images, float `(count, 1, 24, 24)` in 0..1."""
    data = PlacedDigits(batch_size=count)
    image, _, _ = next(iter(data.val_dataloader()))
    return image[:count].float() / 255


def two_views(images: Tensor, recipe: str, seed: int = 1) -> list[Tensor]:
    """Two views of each image by a named recipe, the same ones for a seed."""
    views = views_for(recipe)
    uniform = torch.rand(len(images), views.draws, generator=torch.Generator().manual_seed(seed))
    return views(images, uniform, [0.0] * images.shape[1], [1.0] * images.shape[1])


def show(axes: Axes, image: Tensor, label: str = "") -> None:
    """An image `(C, H, W)` in 0..1 without ticks."""
    shown = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    axes.imshow(shown.clamp(0, 1), cmap="gray", vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[], ylabel=label)
