"""Images of squares and discs with their boxes, for tests of detectors."""

import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["shapes", "shapes_loader"]

Target = dict[str, Tensor]


def shapes(count: int = 8, side: int = 64, seed: int = 0) -> tuple[Tensor, list[Target]]:
    """Float images `(count, 3, side, side)`, each with a bright square (1) and a dark disc (2), and their targets.

    Objects are a fifth to two fifths of the side wide, one in the left and one in the right half.
    """
    draw = torch.Generator().manual_seed(seed)
    images = 0.1 * torch.randn(count, 3, side, side, generator=draw)
    rows, columns = torch.arange(side).view(-1, 1) + 0.5, torch.arange(side).view(1, -1) + 0.5
    targets: list[Target] = []
    for number, image in enumerate(images):
        boxes, masks = [], []
        swapped = bool(torch.rand(1, generator=draw) < 0.5)
        for label in (1, 2):
            width = int(side * (0.2 + 0.2 * torch.rand(1, generator=draw).item()))
            left, top = (
                int(it) for it in torch.rand(2, generator=draw) * torch.tensor([side / 2 - width, side - width])
            )
            left += side // 2 * ((label == 2) != swapped)
            across, down = columns - left - width / 2, rows - top - width / 2
            inside = (across.abs() < width / 2) & (down.abs() < width / 2)
            if label == 2:
                inside = across**2 + down**2 < width**2 / 4
            image[:, inside] += 2.0 if label == 1 else -2.0
            boxes.append([left, top, left + width, top + width])
            masks.append(inside)
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor([1, 2]),
                "masks": torch.stack(masks).to(torch.uint8),
                "image_id": torch.tensor(number),
            }
        )
    return images, targets


def shapes_loader(
    count: int = 8, side: int = 64, batch_size: int = 8, seed: int = 0
) -> DataLoader[tuple[Tensor, Target]]:
    """The same in the same order in every epoch, in batches as torchvision's detectors take them."""
    images, targets = shapes(count, side, seed)
    samples = list(zip(images, targets, strict=True))
    return DataLoader(samples, batch_size, collate_fn=_together)  # type: ignore[arg-type]


def _together(samples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    images, targets = zip(*samples, strict=True)
    return torch.stack(images), list(targets)
