"""A photograph and digits, each beside seven views that recipes make of it."""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from torch import Tensor

from lightning_vision.datamodules import PlacedDigits
from lightning_vision.self_supervised.views import RECIPES, View, Views

__all__ = ["draw"]

# Pixels of a photograph, of a digit on paper, of the space between two, of the paper to one of either.
SIDE, SPACE, SCALE = 48, 2, 2
COLUMNS = 7


def draw() -> Figure:
    """Rows: recipes by name, `dino`'s local views smaller; columns: the image itself, then views of it."""
    photograph, digit = _flower(), _digits()
    names = [name for name in RECIPES if name != "digits"]
    rows = {name: _row(photograph, _kinds(name)) for name in names}
    rows |= {f"digits{' ' * number}": _row(digit[number], _kinds("digits")) for number in range(3)}
    sheet = torch.cat(list(rows.values()))
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(width * SCALE / 100, height * SCALE / 100))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(sheet, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    middles = [row * (SIDE + SPACE) + SIDE / 2 for row in range(len(rows))]
    axis.set(xticks=[], yticks=middles, yticklabels=[name.strip() for name in rows])
    return figure


def _kinds(name: str) -> list[View]:
    """The recipe's views; local ones are as much smaller than the photograph as 96 pixels are than 224."""
    return RECIPES[name](local_size=SIDE * 96 // 224) if name == "dino" else RECIPES[name]()


def _row(image: Tensor, kinds: list[View]) -> Tensor:
    """An image of values 0..1, `(1, C, H, W)`, and views of it: uint8 `(SIDE + SPACE, width, 3)`."""
    views, generator, made = Views(kinds), torch.Generator().manual_seed(1), [image]
    still = [0.0] * image.shape[1], [1.0] * image.shape[1]
    while len(made) <= COLUMNS:
        made += views(image, torch.rand(1, views.draws, generator=generator), *still)
    return torch.cat([_framed(view) for view in made[: COLUMNS + 1]], 1)


def _framed(view: Tensor) -> Tensor:
    """On white, in few colours to keep the file small, uint8 `(SIDE + SPACE, SIDE + SPACE, 3)`."""
    if view.shape[1] == 1:
        view = torch.nn.functional.interpolate(view, (SIDE, SIDE), mode="nearest").expand(1, 3, SIDE, SIDE)
    bytes_ = (view[0].clamp(0, 1) * 15).round().to(torch.uint8) * 17
    missing = SIDE - view.shape[3]
    before = missing // 2
    rest = missing - before + SPACE
    return torch.nn.functional.pad(bytes_, (before, rest, before, rest), value=255).permute(1, 2, 0)


def _flower() -> Tensor:
    """scikit-learn's photograph of a dahlia in few pixels, float `(1, 3, SIDE, SIDE)`, 0..1."""
    photograph = torch.from_numpy(load_sample_images().images[1].copy()).permute(2, 0, 1)[None, :, :420, 160:580]
    return torch.nn.functional.interpolate(photograph / 255, (SIDE, SIDE), mode="bilinear", antialias=True)


def _digits() -> Tensor:
    """Handwritten digits on small canvases, float `(N, 1, 1, 24, 24)`, 0..1."""
    datamodule = PlacedDigits(canvas="plain", batch_size=8)
    return next(iter(datamodule.val_dataloader()))[0][:, None] / 255
