"""A few samples of a validation or test, chosen once and looked at again and again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from numpy.typing import NDArray
from torch import Tensor

from ._metadata import Pixels, as_pixels

__all__ = ["Chosen", "Samples", "labels_of"]


@dataclass(frozen=True)
class Samples:
    """Images and what is known of them, on the CPU.

    Args:
        images: `(N, C, H, W)` as the module takes them; a list of N `(C, H, W)` where sizes differ.
        targets: What the batch says of each image: a class int64 `()`, labels `(K,)`, a mapping; None if nothing.
        names: Of the classes, if datamodule or module say so.
        pixels: Mean and standard deviation of each channel by which images were normalised, if the datamodule says so.
        listed: Whether batches hold lists of images `(C, H, W)`, so that the module wants a list, too.
    """

    images: Tensor | list[Tensor]
    targets: list[Any]
    names: list[str] | None = None
    pixels: Pixels | None = None
    listed: bool = False

    def pieces(self) -> list[Tensor]:
        """The images in their order as batches `(n, C, H, W)`: one of all where sizes are alike, else one of each."""
        return [self.images] if isinstance(self.images, Tensor) else [image[None] for image in self.images]

    def classes(self) -> Tensor | None:
        """Class of each image, int64 `(N,)`, the first of several labels; None where an image has none."""
        labels = [labels_of(it) for it in self.targets]
        return torch.tensor([its[0] for its in labels]) if all(labels) else None

    def called(self, index: int) -> str:
        """The name of a class, its number where nobody named it."""
        return self.names[index] if self.names and 0 <= index < len(self.names) else str(index)

    def object(self, label: int) -> str:
        """The name of an object's class, whose labels begin with 1; background, which is 0, may lead the names."""
        names = self.names or [""]
        index = label if "background" in names[0].lower() else label - 1
        return names[index] if self.names and 0 <= index < len(names) else str(label)

    def shown(self) -> list[NDArray[np.uint8]]:
        """Each image as pixels `(H, W, 3)`; stretched to its own range where nobody told how it was normalised."""
        found = [as_pixels(image[None], self.pixels)[0].expand(3, -1, -1) for image in self.images]
        return [it.permute(1, 2, 0).contiguous().numpy() for it in found]


class Chosen:
    """Picks samples while batches come by: as many of every class as there is room for, of a class the first ones.

    Images without a class give way to those that have one.

    Args:
        count: How many.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._listed = False
        self._kept: list[tuple[Tensor, Any, int | None]] = []

    def add(self, images: Tensor | Sequence[Tensor], targets: Any) -> None:
        """Look through a batch.

        Args:
            images: `(B, C, H, W)` or a list of `(C, H, W)`.
            targets: B entries; anything else counts as none.
        """
        self._listed = not isinstance(images, Tensor)
        numbered = targets.ndim > 0 if isinstance(targets, Tensor) else isinstance(targets, Sequence)
        if not numbered or len(targets) != len(images):
            targets = [None] * len(images)
        # One copy for the batch: an item at a time would wait for the device each time.
        labels = targets.cpu() if isinstance(targets, Tensor) else targets
        for index, target in enumerate(labels):
            own = next(iter(labels_of(target)), None)
            if len(self._kept) < self.count or self._made_room(own):
                self._kept.append((_on_cpu(images[index]), _on_cpu(target), own))

    def _made_room(self, own: int | None) -> bool:
        """Whether a sample gave way: the last one without a class, else of the class that has most."""
        counts = Counter(it[2] for it in self._kept)
        crowded = None if None in counts else counts.most_common(1)[0][0]
        if own is None or (crowded is not None and counts[own] + 1 >= counts[crowded]):
            return False
        del self._kept[max(place for place, it in enumerate(self._kept) if it[2] == crowded)]
        return True

    def samples(self, names: list[str] | None, pixels: Pixels | None) -> Samples | None:
        """What was chosen, class by class; None if no batch came."""
        if not self._kept:
            return None
        kept = sorted(self._kept, key=lambda it: (it[2] is None, it[2] or 0))
        images: list[Tensor] | Tensor = [image for image, _, _ in kept]
        if len({image.shape for image in images}) == 1:
            with torch.inference_mode(False):
                images = torch.stack(list(images))
        return Samples(images, [target for _, target, _ in kept], names, pixels, self._listed)


def labels_of(target: Any) -> list[int]:
    """The classes that one sample's target names, none where it names none.

    Args:
        target: A class, negative (-1, -100) where it is unknown; 0 and 1 `(K,)`; shares of classes `(K,)`, of which the
            largest counts; a mapping with `labels`, one for each object.
    """
    if isinstance(target, Mapping):
        labels = target.get("labels")
        return [int(it) for it in labels.flatten().tolist()] if isinstance(labels, Tensor) else []
    values = target.flatten().tolist() if isinstance(target, Tensor) and target.ndim < 2 else [target]
    if not values or not all(isinstance(it, (int, float)) for it in values):
        return []
    if len(values) == 1:
        return [int(values[0])] if values[0] >= 0 and values[0] % 1 == 0 else []
    if all(it in (0, 1) for it in values):
        return [index for index, it in enumerate(values) if it]
    return [int(np.argmax(values))] if min(values) >= 0 and abs(sum(values) - 1) < 0.01 else []


def _on_cpu(value: Any) -> Any:
    """A copy with ordinary tensors on the CPU, also where Lightning made them in inference mode."""
    with torch.inference_mode(False):
        return apply_to_collection(value, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
