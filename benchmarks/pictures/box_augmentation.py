"""A row for each box augmentation: six scenes of digits with the boxes that they have afterwards."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.datamodules import DigitScenes
from lightning_vision.datamodules.detection import (
    Annotations,
    BoxAugmentation,
    BoxChain,
    BoxMixUp,
    HorizontalFlip,
    Mosaic,
    ObjectCrop,
    PhotometricDistortion,
    PixelsOnly,
    ScaleJitter,
)

__all__ = ["draw"]

# Pixels of a scene, of the space between two, of the paper to one of either; scenes in a row.
SIDE, SPACE, SCALE, COUNT = 96, 4, 1, 6
YELLOW = torch.tensor([255, 255, 0], dtype=torch.uint8)
ROWS: dict[str, BoxAugmentation] = {
    "as it is": BoxChain([]),
    "HorizontalFlip": HorizontalFlip(),
    "ScaleJitter": ScaleJitter((0.3, 2.0)),
    "ObjectCrop": ObjectCrop(prob=1.0),
    "Photometric\nDistortion": PixelsOnly(PhotometricDistortion()),
    "Mosaic": Mosaic(),
    "BoxMixUp": BoxMixUp(),
}


def draw() -> Figure:
    """Rows: the methods by name; columns: scenes."""
    scenes = DigitScenes(image_size=SIDE, sizes=(0.2, 0.45), val_images=COUNT, batch_size=COUNT)
    images, annotations, _ = next(iter(scenes.val_dataloader()))
    generator = torch.Generator().manual_seed(3)
    sheet = torch.cat([_row(*method(images, annotations, generator)) for method in ROWS.values()])
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(width * SCALE / 100, height * SCALE / 100))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(sheet, interpolation="nearest")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    middles = [row * (SIDE + SPACE) + SIDE / 2 for row in range(len(ROWS))]
    axis.set(xticks=[], yticks=middles, yticklabels=list(ROWS))
    return figure


def _row(images: Tensor, annotations: Annotations) -> Tensor:
    """Scenes side by side with their boxes, in few colours to keep the file small, uint8 `(H, W, 3)`."""
    pictures = []
    for image, target in zip(images // 32 * 36, annotations.targets(), strict=True):
        picture = image.clone()
        for left, top, right, bottom in target["boxes"].round().int().tolist():
            for rows, columns in (
                (slice(top, bottom), [left, right - 1]),
                ([top, bottom - 1], slice(left, right)),
            ):
                picture[:, rows, columns] = YELLOW[:, None, None]
        pictures.append(torch.nn.functional.pad(picture, (0, SPACE, 0, SPACE), value=255).permute(1, 2, 0))
    return torch.cat(pictures, 1)
