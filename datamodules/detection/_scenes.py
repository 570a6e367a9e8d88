"""Scenes of handwritten digits on crops of photographs, drawn when they are fetched."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..common._draws import Stream, draw_uniform
from ..common._sets import Fetched
from ._sets import BoxedImages
from .annotations import Annotations

__all__ = ["SceneImages"]

CROPS = (80, 128)
DARK, LIGHT = (0, 80), (175, 255)
INK = 1.6
TRIES = 10
# Weights of a resize are multiples of 1 / STEPS, so that sums of products with bytes are exact in float32, and the same
# whatever order a machine takes them in.
STEPS = 128
# Uniform numbers: of the background and the count; of an object, before those of the places that are tried.
SCENE, OBJECT = 6, 5


@dataclass(frozen=True)
class Pasted:
    """A digit in its place.

    Args:
        label: Its class, 1..10.
        opacity: Of its square, float32 `(S, S)` in 0..1.
        top: First row of the square, pixels.
        left: First column.
        box: Left, top, right, bottom of the pixels that it covers by more than half, half open.
        colour: Draws of its colour, three in [0, 1).
    """

    label: int
    opacity: NDArray[np.float32]
    top: int
    left: int
    box: tuple[int, int, int, int]
    colour: tuple[float, ...]

    @property
    def ink(self) -> NDArray[np.bool_]:
        """The pixels of the square that count as the digit, bool `(S, S)`."""
        return self.opacity > 0.5


class SceneImages(BoxedImages):
    """Photographs with digits on them; a scene is a function of (keys, epoch, position).

    Each scene is computed on its own, so that its bits do not depend on the rest of the batch; by numpy, whose small
    operations cost a third of torch's.

    Args:
        count: Scenes in an epoch.
        digits: uint8 `(N, 1, 8, 8)`.
        labels: Their classes, 1..10, int64 `(N,)`.
        photos: What backgrounds are cut from, uint8 `(3, H, W)` each.
        side: Height and width of a scene, pixels.
        objects: Fewest and most digits.
        sizes: Smallest and largest side of a digit's square, pixels.
        overlap: Largest share of the smaller of two boxes that may lie in the other.
        masks: Give the digits' masks, too.
        keys: Keys of all draws.
        fixed: The same in every epoch.
    """

    def __init__(
        self,
        count: int,
        digits: Tensor,
        labels: Tensor,
        photos: list[Tensor],
        *,
        side: int,
        objects: tuple[int, int],
        sizes: tuple[int, int],
        overlap: float,
        masks: bool,
        keys: tuple[int, ...],
        fixed: bool,
    ) -> None:
        self.count, self.digits, self.labels, self.photos = count, digits[:, 0].numpy(), labels.tolist(), photos
        self.side, self.objects, self.sizes, self.overlap, self.masks = side, objects, sizes, overlap, masks
        self.keys, self.fixed = keys, fixed

    def __len__(self) -> int:
        return self.count

    def annotations(self, index: Tensor, epoch: int = 0) -> Annotations:
        return self._packed(index, [self._placed(numbers) for numbers in self._numbers(index, epoch)], masks=False)

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        numbers = self._numbers(index, epoch)
        placed = [self._placed(row) for row in numbers]
        images = [self._painted(row, pasted) for row, pasted in zip(numbers, placed, strict=True)]
        return Fetched(torch.stack(images), self._packed(index, placed, self.masks), index)

    def _numbers(self, index: Tensor, epoch: int) -> list[list[float]]:
        count = SCENE + self.objects[1] * (OBJECT + 2 * TRIES)
        counter = index[:, None] * count + torch.arange(count)
        rows: list[list[float]] = draw_uniform(counter, *self.keys, 0 if self.fixed else epoch, Stream.SCENE).tolist()
        return rows

    def _placed(self, numbers: list[float]) -> list[Pasted]:
        """The digits of a scene; one for which no free place is found is left out, never the first."""
        fewest, most = self.objects
        smallest, largest = self.sizes
        placed: list[Pasted] = []
        for number in range(fewest + int(numbers[SCENE - 1] * (most - fewest + 1))):
            start = SCENE + number * (OBJECT + 2 * TRIES)
            which, size, *colour = numbers[start : start + OBJECT]
            digit = int(which * len(self.digits))
            square = round(smallest * (largest / smallest) ** size)
            opacity = _opacity(self.digits[digit], square)
            left, top, right, bottom = _extent(opacity)
            free = self.side - square + 1
            for place in range(start + OBJECT, start + OBJECT + 2 * TRIES, 2):
                down, across = int(numbers[place] * free), int(numbers[place + 1] * free)
                box = left + across, top + down, right + across, bottom + down
                if all(_shared(box, other.box) <= self.overlap for other in placed):
                    placed.append(Pasted(self.labels[digit], opacity, down, across, box, tuple(colour)))
                    break
        return placed

    def _painted(self, numbers: list[float], placed: list[Pasted]) -> Tensor:
        photo, size, down, across, mirror = numbers[: SCENE - 1]
        pixels = self.photos[int(photo * len(self.photos))]
        crop = CROPS[0] + int(size * (CROPS[1] - CROPS[0] + 1))
        top, left = int(down * (pixels.shape[1] - crop + 1)), int(across * (pixels.shape[2] - crop + 1))
        window = pixels[None, :, top : top + crop, left : left + crop]
        image = F.interpolate(window, (self.side, self.side), mode="bilinear")[0]
        image = image.flip(2) if mirror < 0.5 else image
        image = image.contiguous()
        canvas = image.numpy()
        for it in placed:
            square = len(it.opacity)
            patch = canvas[:, it.top : it.top + square, it.left : it.left + square]
            low, high = DARK if patch.sum() > 127 * patch.size else LIGHT
            colour = np.array([low + (high - low) * draw for draw in it.colour], np.float32)[:, None, None]
            patch[:] = np.rint(patch + it.opacity * (colour - patch))
        return image

    def _packed(self, index: Tensor, placed: list[list[Pasted]], masks: bool) -> Annotations:
        objects = [it for scene in placed for it in scene]
        counts = torch.tensor([len(scene) for scene in placed])
        boxes = torch.tensor([it.box for it in objects], dtype=torch.float32).view(-1, 4)
        drawn = np.zeros((len(objects), self.side, self.side), np.uint8) if masks else None
        if drawn is not None:
            for mask, it in zip(drawn, objects, strict=True):
                square = len(it.opacity)
                mask[it.top : it.top + square, it.left : it.left + square] = it.ink
        return Annotations(
            boxes=boxes,
            labels=torch.tensor([it.label for it in objects], dtype=torch.int64),
            sample=torch.arange(len(placed)).repeat_interleave(counts),
            crowd=torch.zeros(len(objects), dtype=torch.bool),
            area=torch.tensor([float(it.ink.sum()) for it in objects]),
            image_id=index % len(self),
            placement=torch.tensor([[1.0, 1.0, 0.0, 0.0]]).repeat(len(placed), 1),
            size=torch.full((len(placed), 2), self.side),
            masks=None if drawn is None else torch.from_numpy(drawn),
        )


def _opacity(digit: NDArray[np.uint8], square: int) -> NDArray[np.float32]:
    """How much of the ground a digit `(8, 8)` hides when it is written `square` pixels large, float32 `(S, S)`."""
    weights = _weights(square)
    return np.clip(weights @ digit.astype(np.float32) @ weights.T * np.float32(INK / 255 / STEPS**2), 0, 1)


@cache
def _weights(square: int) -> NDArray[np.float32]:
    """What each of 8 pixels in a row adds to each of `square`, in steps, as a bicubic resize has it, `(S, 8)`."""
    resized = F.interpolate(torch.eye(8)[None, None], (square, 8), mode="bicubic")[0, 0]
    found: NDArray[np.float32] = (resized * STEPS).round().numpy()
    return found


def _extent(opacity: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (half open) of what is more than half opaque."""
    ink = opacity > 0.5
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _shared(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """How much of the smaller of two boxes lies in the other, fraction."""
    width, height = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)
