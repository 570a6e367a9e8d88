"""A few samples of a validation or test, chosen once and looked at again and again."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Chosen", "Samples"]


@dataclass(frozen=True)
class Samples:
    """Images and what is known of them, on the CPU.

    Args:
        images: `(N, C, H, W)` as the module takes them, or a list of N `(C, H, W)` where batches are lists.
        targets: What the batch says of each image: a class int64 `()`, labels `(K,)`, a mapping; None if nothing.
        names: Of the classes, if datamodule or module say so.
        pixels: Mean and standard deviation of each channel by which images were normalised, if the datamodule says so.
    """

    images: Tensor | list[Tensor]
    targets: list[Any]
    names: list[str] | None = None
    pixels: tuple[list[float], list[float]] | None = None

    def classes(self) -> Tensor | None:
        """Class of each image, int64 `(N,)`, the first of several labels; None where there is none."""
        found = [_class_of(it) for it in self.targets]
        return None if any(it is None for it in found) else torch.tensor(found)

    def called(self, index: int) -> str:
        """The name of a class, its number where nobody named it."""
        return self.names[index] if self.names and 0 <= index < len(self.names) else str(index)

    def shown(self) -> list[NDArray[np.uint8]]:
        """Each image as pixels `(H, W, 3)`; stretched to its own range where nobody told how it was normalised."""
        return [self._shown(image) for image in self.images]

    def _shown(self, image: Tensor) -> NDArray[np.uint8]:
        image = image.float()
        if self.pixels is not None:
            mean, std = (torch.tensor(it)[:, None, None] for it in self.pixels)
            image = image * std + mean
        else:
            low, high = image.min(), image.max()
            image = (image - low) / (high - low).clamp_min(1e-12)
        pixels = (image * 255).round().clamp(0, 255).byte()
        # Of one or two channels the first is shown as grey, of more than three the first three.
        pixels = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
        return pixels.permute(1, 2, 0).contiguous().numpy()


class Chosen:
    """Picks samples while batches come by: as many of every class as there is room for, of a class the first ones.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._stacked = True
        self._kept: list[tuple[Tensor, Any, int | None]] = []

    def add(self, images: Tensor | Sequence[Tensor], targets: Any) -> None:
        """Look through a batch.

        Args:
            images: `(B, C, H, W)` or a list of `(C, H, W)`.
            targets: B entries, or None.
        """
        self._stacked = isinstance(images, Tensor)
        classes = _classes_of(targets, len(images))
        for index, own in enumerate(classes):
            if len(self._kept) >= self.count:
                crowded, most = Counter(it[2] for it in self._kept).most_common(1)[0]
                if own is None or sum(it[2] == own for it in self._kept) + 1 >= most:
                    continue
                last = max(place for place, it in enumerate(self._kept) if it[2] == crowded)
                del self._kept[last]
            target = None if targets is None else _on_cpu(targets[index])
            self._kept.append((images[index].detach().cpu().clone(), target, own))

    def samples(self, names: list[str] | None, pixels: tuple[list[float], list[float]] | None) -> Samples | None:
        """What was chosen, class by class; None if no batch came."""
        if not self._kept:
            return None
        kept = sorted(self._kept, key=lambda it: -1 if it[2] is None else it[2])
        images = [image for image, _, _ in kept]
        return Samples(torch.stack(images) if self._stacked else images, [it[1] for it in kept], names, pixels)


def _class_of(target: Any) -> int | None:
    if not isinstance(target, Tensor) or target.numel() == 0 or target.ndim > 1:
        return None
    return int(target) if target.ndim == 0 else int(target.argmax())


def _classes_of(targets: Any, count: int) -> list[int | None]:
    if isinstance(targets, Tensor) and targets.ndim in (1, 2) and len(targets) == count:
        # One copy for the batch: an item at a time would wait for the device each time.
        return [_class_of(it) for it in targets.cpu()]
    return [None] * count


def _on_cpu(target: Any) -> Any:
    if isinstance(target, Tensor):
        return target.detach().cpu().clone()
    if isinstance(target, dict):
        return {key: _on_cpu(value) for key, value in target.items()}
    return target
