"""The picture of the fifteen common corruptions: one photograph at severities 1, 3 and 5."""

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2.functional import resize

from lightning_vision.robustness import corrupt_images
from lightning_vision.robustness.corruptions import CORRUPTION_FAMILIES

__all__ = ["draw"]

SIDE, GAP, LINE = 52, 4, 16
SHOWN = (1, 3, 5)
# Of a tile; noise of all colours makes large files.
COLOURS = 12


def draw() -> Figure:
    """Two rows of columns, a corruption each, family by family; in a column its severities, from above."""
    photograph = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[:, 20:420, 120:520]
    image = resize(photograph, [SIDE, SIDE])[None]
    names = ["identity", *(name for family in CORRUPTION_FAMILIES.values() for name in family)]
    columns = len(names) // 2
    step, height = SIDE + GAP, LINE + len(SHOWN) * (SIDE + GAP)
    sheet = np.full((2 * height, columns * step, 3), 255, dtype=np.uint8)
    for number, name in enumerate(names):
        for row, severity in enumerate(SHOWN):
            top, left = number // columns * height + LINE + row * step, number % columns * step
            tile = Image.fromarray(corrupt_images(image, name, severity)[0].permute(1, 2, 0).numpy())
            few = tile.quantize(COLOURS, dither=Image.Dither.NONE).convert("RGB")
            sheet[top : top + SIDE, left : left + SIDE] = np.asarray(few)
    figure = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest", aspect="auto")
    axes.axis("off")
    for number, name in enumerate(names):
        top, left = number // columns * height, number % columns * step
        axes.text(left + SIDE / 2, top + LINE - 3, name.replace("_", " "), fontsize=5, ha="center")
    for row, severity in enumerate(SHOWN):
        for half in (0, 1):
            axes.text(-5, half * height + LINE + row * step + SIDE / 2, str(severity), fontsize=7, ha="right")
    return figure
