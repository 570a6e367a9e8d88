"""The images of a training and of its evaluations as they lie there: without augmentation, batches or a loader's order.

Nothing of the loaders moves, and random streams are put back by whoever reads. What is asked, the first that is there:

1. the datamodule's `bank_set` (the training images at the size of evaluation), `val_set` and `test_set`, if they have
   the `fetch(positions)` of this project's sets, or such a set in a loader;
2. the loader's `dataset`, position by position; of torchvision's the transforms are taken off, on a copy;
3. a copy of the loader, whose batches come in its order, with what they were changed by.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from ._batch_norm import twin
from ._fields import Fields

__all__ = ["Still", "StillImages", "still_sets"]

CHUNK = 256


@dataclass(frozen=True)
class Still:
    """An image.

    Args:
        position: In its set.
        image: `(C, H, W)`, bytes or floats as the set gives them.
        label: Its class; None if it has no single one.
    """

    position: int
    image: Tensor
    label: int | None


class StillImages:
    """The images of a set.

    Args:
        name: As `train`, `val` or `test`.
        source: A set with `fetch`, a dataset with positions, or a loader.
        fields: Where images and labels stand in a sample or a batch.
    """

    def __init__(self, name: str, source: Any, fields: Fields) -> None:
        self.name, self.fields = name, fields
        self.looped = not (hasattr(source, "fetch") or _has_positions(source))
        self._source = source if self.looped or hasattr(source, "fetch") else _without_transforms(source)
        self._length = None if self.looped else len(source)
        self.paths: list[str] = [str(it) for it in getattr(source, "paths", None) or ()]

    def __len__(self) -> int:
        """How many there are; of a loader -1."""
        return -1 if self._length is None else self._length

    def called(self, position: int) -> str:
        """An image's name: its file, or else its position."""
        return self.paths[position] if position < len(self.paths) else f"{self.name} {position}"

    def read(self, most: int | None) -> Iterator[Still]:
        """So many images at most, evenly spread over the set; of a loader the first ones."""
        if self.looped:
            yield from islice(self._looped(), most)
            return
        count = len(self) if most is None else min(most, len(self))
        positions = [it * len(self) // count for it in range(count)]
        for start in range(0, count, CHUNK):
            yield from self.at(positions[start : start + CHUNK])

    def at(self, positions: list[int]) -> list[Still]:
        """The images at some positions; a loader has none."""
        if hasattr(self._source, "fetch"):
            found = self._source.fetch(torch.tensor(positions))
            return [
                Still(it, found.image[number], _label(found.target, number))
                for number, it in enumerate(found.index.tolist())
            ]
        samples = [self._source[it] for it in positions]
        return [Still(it, *self._parts(sample)) for it, sample in zip(positions, samples, strict=True)]

    def repeats(self) -> bool:
        """Whether the first image is the same when it is read again; what a dataset augments itself is not."""
        if self.looped or not len(self):
            return True
        first, again = (self.at([0])[0].image for _ in range(2))
        return first.shape == again.shape and torch.equal(first, again)

    def _looped(self) -> Iterator[Still]:
        loader, position = twin(self._source), 0
        try:
            for batch in loader:
                images, labels = self._parts_of_batch(batch)
                for number, image in enumerate(images):
                    yield Still(position, _chw(image), _label(labels, number))
                    position += 1
        finally:
            if hasattr(loader, "close"):
                loader.close()

    def _parts_of_batch(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Tensor):
            return batch, None
        labelled = self.fields.target_key in batch if isinstance(batch, Mapping) else len(batch) > 1
        return self.fields.image(batch), self.fields.target(batch) if labelled else None

    def _parts(self, sample: Any) -> tuple[Tensor, int | None]:
        if not isinstance(sample, Mapping | list | tuple):
            return _chw(sample), None
        image, label = self._parts_of_batch(sample)
        return _chw(image), _label([label], 0)


def still_sets(trainer: Trainer, pl_module: LightningModule, fields: Fields) -> dict[str, list[StillImages]]:
    """The sets of a fit that has its loaders, under `train`, `val` and `test`; of tests only a datamodule's."""
    data: Any = getattr(trainer, "datamodule", None)
    loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
    found: dict[str, list[StillImages]] = {}
    for name, attribute in (("train", "bank_set"), ("val", "val_set"), ("test", "test_set")):
        own = getattr(data, attribute, None)
        if name == "test" and own is getattr(data, "val_set", None):
            own = None
        sources = [own] if hasattr(own, "fetch") else []
        if not sources and loaders.get(name) is not None:
            flat = CombinedLoader(loaders[name]).flattened
            sources = [_dataset_or_loader(it) for it in (flat[:1] if name == "train" else flat)]
        names = [name if len(sources) == 1 else f"{name} {number}" for number in range(len(sources))]
        found[name] = [StillImages(called, it, fields) for called, it in zip(names, sources, strict=True)]
    return found


def _dataset_or_loader(loader: Any) -> Any:
    dataset = getattr(loader, "dataset", None)
    return dataset if hasattr(dataset, "fetch") or _has_positions(dataset) else loader


def _has_positions(source: Any) -> bool:
    ways = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return ways and not isinstance(source, IterableDataset) and not hasattr(source, "__next__")


def _without_transforms(dataset: Any) -> Any:
    if isinstance(dataset, Subset):
        whole = _without_transforms(dataset.dataset)
        return dataset if whole is dataset.dataset else Subset(whole, dataset.indices)
    # Here, for torchvision takes a while to import.
    from torchvision.datasets import VisionDataset

    if not isinstance(dataset, VisionDataset):
        return dataset
    bare = copy.copy(dataset)
    bare.transform = bare.target_transform = bare.transforms = None
    return bare


def _chw(image: Any) -> Tensor:
    """A tensor, an array `(H, W, C)` or `(H, W)`, or a picture of PIL as `(C, H, W)`."""
    if isinstance(image, Tensor):
        return image if image.ndim == 3 else image.view(1, *image.shape[-2:])
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _label(labels: Any, number: int) -> int | None:
    """A sample's class among labels; boxes, shares and several classes are none."""
    if isinstance(labels, Tensor):
        plain = labels.ndim == 1 and not labels.is_floating_point()
        return int(labels[number]) if plain else None
    label = labels[number] if isinstance(labels, list | tuple) and number < len(labels) else None
    if isinstance(label, Tensor):
        return int(label) if label.ndim == 0 and not label.is_floating_point() else None
    return int(label) if isinstance(label, int | np.integer) and not isinstance(label, bool) else None
