"""The picture of TestTimeAugmentation: a photograph, the windows of its crops and the ten views that are averaged."""

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

from lightning_vision.callbacks.evaluation.test_time_augmentation import evaluation_views

__all__ = ["draw"]

SIDE, CROP = 64, 48
NAMES = ("top left", "top right", "bottom left", "bottom right", "centre")


def draw() -> Figure:
    """A flower with five windows of three quarters of its sides, what they show, and the mirror images of that."""
    # Few colours, so that the file is small.
    photo = torch.from_numpy(load_sample_image("flower.jpg").copy())[20:404:6, 150:534:6].permute(2, 0, 1) // 24 * 24
    views = evaluation_views(photo[None], "ten_crop", (CROP, CROP))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    grid = figure.add_gridspec(2, 7)
    whole = figure.add_subplot(grid[:, :2])
    whole.imshow(photo.permute(1, 2, 0).numpy(), interpolation="nearest")
    far = SIDE - CROP
    for number, (left, top) in enumerate([(0, 0), (far, 0), (0, far), (far, far), (far / 2, far / 2)]):
        # Inwards by a little, so that edges which two windows share are both seen.
        inwards = 0.6 * number
        corner, side = (left - 0.5 + inwards, top - 0.5 + inwards), CROP - 2 * inwards
        whole.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=f"C{number}", linewidth=2))
    whole.set(xticks=[], yticks=[], title="the image and its crops")
    for number, view in enumerate(views):
        axes = figure.add_subplot(grid[number // 5, 2 + number % 5])
        axes.imshow(view[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=f"C{number % 5}", linewidth=2)
        axes.set_title(NAMES[number] if number < 5 else "its mirror image", fontsize=9)
    return figure
