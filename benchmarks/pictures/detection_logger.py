"""The picture of DetectionLogger: scenes of digits with what a detector says that errs on purpose."""

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_vision.callbacks.evaluation._boxes import box_sheet
from lightning_vision.datamodules import DigitScenes

__all__ = ["draw"]


def draw() -> Figure:
    """Three scenes; boxes are shaken by 3 pixels, a fifth is missed and a fifth called by another name."""
    data = DigitScenes(val_images=3, batch_size=3)
    data.setup("validate")
    images, annotations, _ = next(iter(data.val_dataloader()))
    random = torch.Generator().manual_seed(3)
    pictures = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    targets = annotations.targets()
    true = [[(box, str(label - 1)) for box, label in _rows(its)] for its in targets]
    sheet = box_sheet(pictures, true, [_erring(its, random) for its in targets])
    # Pixel by pixel: stretched, it would be a larger file with blurred letters.
    figure = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100))
    figure.figimage(sheet)
    return figure


def _rows(target: dict[str, Tensor]) -> list[tuple[list[float], int]]:
    return list(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True))


def _erring(target: dict[str, Tensor], random: torch.Generator) -> list[tuple[list[float], str]]:
    found = []
    for box, label in _rows(target):
        missed, called, score = torch.rand(3, generator=random).tolist()
        shaken = torch.tensor(box) + 3 * torch.randn(4, generator=random).clamp(-1, 1)
        if missed > 0.2:
            said = (label + 5) % 10 if called < 0.2 else label - 1
            found.append((shaken.tolist(), f"{said} {0.5 + score / 2:.2f}"))
    return found
