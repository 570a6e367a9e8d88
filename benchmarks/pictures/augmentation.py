"""A row for each augmentation policy: seven draws of it on one photograph."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_vision.datamodules.augmentation.policies import POLICIES, policy

__all__ = ["draw"]

# Pixels of a photograph, of the space between two, of the paper to one of either.
SIDE, SPACE, SCALE = 40, 2, 2
DRAWS = 7


def draw() -> Figure:
    """Rows: the policies by name; columns: draws."""
    rows = [torch.cat([_framed(image) for image in _drawn(name)], 1) for name in POLICIES]
    sheet = torch.cat(rows)
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(width * SCALE / 100, height * SCALE / 100))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(sheet, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    middles = [row * (SIDE + SPACE) + SIDE / 2 for row in range(len(POLICIES))]
    axis.set(xticks=[], yticks=middles, yticklabels=POLICIES)
    return figure


def _drawn(name: str) -> Tensor:
    """Draws of a policy, uint8 `(DRAWS, 3, SIDE, SIDE)`, in few colours to keep the file small."""
    images = _flower().repeat(DRAWS, 1, 1, 1)
    augmentation = policy(name, (SIDE, SIDE))
    if augmentation is not None:
        images = augmentation(images, torch.Generator().manual_seed(4))
    return images // 16 * 17


def _framed(image: Tensor) -> Tensor:
    """With white below and to the right, uint8 `(SIDE + SPACE, SIDE + SPACE, 3)`."""
    return torch.nn.functional.pad(image, (0, SPACE, 0, SPACE), value=255).permute(1, 2, 0)


def _flower() -> Tensor:
    """scikit-learn's photograph of a dahlia in few pixels, uint8 `(1, 3, SIDE, SIDE)`."""
    photograph = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None, :, :420, 160:580]
    return torch.nn.functional.interpolate(photograph, (SIDE, SIDE), mode="bilinear", antialias=True)
