"""The images of a training and of its evaluations as they lie there: without augmentation, batches or a loader's order.

Nothing of the loaders moves, and random streams are put back by whoever reads. What is asked, the first that is there:

1. the datamodule's `bank_set` (the training images at the size of evaluation), `val_set` and `test_set`, if they have
   the `fetch(positions)` of this project's sets, or such a set in a loader;
2. the loader's `dataset`, position by position; of torchvision's the transforms are taken off, on a copy;
3. a copy of the loader, whose batches come in its order, with what they were changed by.

Lightning asks for test loaders only when it tests. Of a stranger's datamodule or module `test_dataloader` is called
here, which may not be ready for it.
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
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from ._batch_norm import twin
from ._fields import Fields

__all__ = ["Still", "StillImages", "still_sets", "test_loaders"]

CHUNK = 256
_SETS = {"train": "bank_set", "val": "val_set", "test": "test_set"}  # of a datamodule of this project


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
        # A dataset has nothing to gain from many at once, which may not fit into memory.
        chunk = CHUNK if hasattr(self._source, "fetch") else 1
        for start in range(0, count, chunk):
            yield from self.at(positions[start : start + chunk])

    def at(self, positions: list[int]) -> list[Still]:
        """The images at some positions; a loader has none."""
        if hasattr(self._source, "fetch"):
            found = self._source.fetch(torch.tensor(positions))
            return [
                Still(it, found.image[number], _label(found.target, number))
                for number, it in enumerate(found.index.tolist())
            ]
        return [Still(it, *self._parts(self._source[it], it)) for it in positions]

    def repeats(self) -> bool:
        """Whether eight images are the same when they are read three times; what a dataset augments itself is not.

        Mirrored with probability 1/2, all of them are the same once in 65,536 sets.
        """
        if self.looped or not len(self):
            return True
        positions = sorted({it * len(self) // 8 for it in range(8)})
        first, *others = ([it.image for it in self.at(positions)] for _ in range(3))
        return all(
            old.shape == new.shape and torch.equal(old, new)
            for again in others
            for old, new in zip(first, again, strict=True)
        )

    def _looped(self) -> Iterator[Still]:
        loader, position = twin(self._source), 0
        try:
            for batch in loader:
                images, labels = self._parts_of_batch(batch)
                if not isinstance(images, Tensor | np.ndarray | list | tuple):
                    raise self._no_image(images, position)
                for number, image in enumerate(images):
                    yield Still(position, self._chw(image, position), _label(labels, number))
                    position += 1
        finally:
            if hasattr(loader, "close"):
                loader.close()

    def _parts_of_batch(self, batch: Any) -> tuple[Any, Any]:
        if isinstance(batch, Tensor):
            return batch, None
        labelled = self.fields.target_key in batch if isinstance(batch, Mapping) else len(batch) > 1
        return self.fields.image(batch), self.fields.target(batch) if labelled else None

    def _parts(self, sample: Any, position: int) -> tuple[Tensor, int | None]:
        if not isinstance(sample, Mapping | list | tuple):
            return self._chw(sample, position), None
        image, label = self._parts_of_batch(sample)
        return self._chw(image, position), _label([label], 0)

    def _chw(self, image: Any, position: int) -> Tensor:
        """A tensor, an array `(H, W, C)` or `(H, W)`, or a picture of PIL as `(C, H, W)`."""
        if isinstance(image, Tensor):
            pixels = image
        elif isinstance(image, np.ndarray) or hasattr(image, "__array_interface__"):
            array = torch.from_numpy(np.array(image))
            pixels = array.permute(2, 0, 1) if array.ndim == 3 else array
        else:
            raise self._no_image(image, position)
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or not pixels.numel():
            raise self._no_image(image, position)
        return pixels

    def _no_image(self, found: Any, position: int) -> ValueError:
        shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
        return ValueError(
            f"{self.fields.owner}: the image of {self.called(position)} is a {type(found).__name__}{shape}; give one "
            "image (C, H, W) a sample, under image_key= or first, or leave it out."
        )


def still_sets(trainer: Trainer, fields: Fields, tests: Any = None) -> dict[str, list[StillImages]]:
    """The sets of a fit that has its loaders, under `train`, `val` and `test`.

    Args:
        trainer: It is about to fit.
        fields: Where images and labels stand in a sample or a batch.
        tests: Loaders of test images, as Lightning takes them.
    """
    data: Any = getattr(trainer, "datamodule", None)
    loaders = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders, "test": tests}
    known: dict[str, list[Any]] = {}
    for name, attribute in _SETS.items():
        own = getattr(data, attribute, None)
        flat = [] if loaders[name] is None else CombinedLoader(loaders[name]).flattened
        sources = [own] if hasattr(own, "fetch") else [_dataset_or_loader(it) for it in flat]
        # Two loaders may have one set, and tests be the validation.
        seen = {id(it) for it in known["val"]} if name == "test" else set()
        known[name] = list({id(it): it for it in sources if id(it) not in seen}.values())
    return {
        name: [
            StillImages(name if len(sources) == 1 else f"{name} {number}", it, fields)
            for number, it in enumerate(sources)
        ]
        for name, sources in known.items()
    }


def test_loaders(trainer: Trainer, pl_module: LightningModule) -> tuple[Any, str]:
    """A stranger's loaders of test images, if there are any before a test; else, if something raised, that in words."""
    data = getattr(trainer, "datamodule", None)
    if any(hasattr(getattr(data, it, None), "fetch") for it in _SETS.values()):
        return None, ""
    for owner in (data, pl_module):
        if owner is not None and is_overridden("test_dataloader", owner):
            try:
                return owner.test_dataloader(), ""
            except Exception as error:  # of any kind: it is a stranger's, called before its time
                return None, (
                    f"test images are not looked at, for test_dataloader() of {type(owner).__name__} cannot be called "
                    f"before a test ({type(error).__name__}: {error})"
                )
    return None, ""


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
    for name in ("transform", "target_transform", "transforms"):
        # Not None: a class of one's own may call it unasked.
        if getattr(bare, name, None) is not None:
            setattr(bare, name, _same)
    return bare


def _same(*values: Any) -> Any:
    return values if len(values) > 1 else values[0]


def _label(labels: Any, number: int) -> int | None:
    """A sample's class among labels; boxes, shares and several classes are none."""
    if isinstance(labels, Tensor):
        plain = labels.ndim == 1 and not labels.is_floating_point()
        return int(labels[number]) if plain else None
    label = labels[number] if isinstance(labels, list | tuple) and number < len(labels) else None
    if isinstance(label, Tensor):
        return int(label) if label.ndim == 0 and not label.is_floating_point() else None
    return int(label) if isinstance(label, int | np.integer) and not isinstance(label, bool) else None
