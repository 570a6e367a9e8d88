"""Stores of answers that no teacher gave, drawn at random, so that each can be told from the others."""

from pathlib import Path

import torch

from lightning_vision.datamodules import Digits, top_scores
from lightning_vision.datamodules.common._answers import AnswerStore
from lightning_vision.datamodules.common._fingerprint import fingerprint
from lightning_vision.datamodules.common.datamodule import VisionDataModule

__all__ = ["answered", "digits_maps", "digits_store", "mapped"]


def answered(folder: str | Path, data: VisionDataModule, entries: int, top_k: int) -> Path:
    """A store of the training images of `data`.

    Args:
        folder: Made here.
        data: With the augmentation that is replayed.
        entries: Of each image.
        top_k: Classes of each entry.
    """
    data.setup()
    assert data.train_set is not None
    Path(folder).mkdir(parents=True, exist_ok=True)
    sizes = {"samples": len(data.train_set), "num_classes": data.num_classes, "num_samples": entries, "top_k": top_k}
    store = AnswerStore.create(folder, {**sizes, "seed": data.seed, "data": fingerprint(data, data.seed)})
    logits = 2 * torch.randn(store.rows, data.num_classes, generator=torch.Generator().manual_seed(0))
    top = logits.softmax(1).topk(top_k)
    store.write(torch.arange(store.rows), top.indices, top.values)
    store.save(store.rows)
    return Path(folder)


def digits_store(folder: str | Path) -> Path:
    """A store of the digits as the shipped config augments them."""
    return answered(folder, Digits(shift=1), 2, 5)


def mapped(folder: str | Path, data: VisionDataModule, map_size: tuple[int, int], top_k: int) -> Path:
    """A store of label maps of the training images of `data`.

    Args:
        folder: Made here.
        data: Whose images they are.
        map_size: Cells of a map.
        top_k: Classes of each cell.
    """
    data.setup()
    assert data.train_set is not None
    Path(folder).mkdir(parents=True, exist_ok=True)
    sizes = {"samples": len(data.train_set), "num_classes": data.num_classes, "num_samples": 1, "top_k": top_k}
    told = {"command": "relabel", "map_size": list(map_size), "data": fingerprint(data, 0, augmented=False)}
    store = AnswerStore.create(folder, {**sizes, **told})
    maps = 4 * torch.randn(store.rows, data.num_classes, *map_size, generator=torch.Generator().manual_seed(0))
    classes, scores = top_scores(maps, top_k)
    store.write(torch.arange(store.rows), classes, scores)
    store.save(store.rows)
    return Path(folder)


def digits_maps(folder: str | Path) -> Path:
    """Label maps of the digits."""
    return mapped(folder, Digits(), (2, 2), 5)
