"""What the subcommands share that let teachers fill a store with answers to training images."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_vision.base.module import shortened
from lightning_vision.base.weights import module_from_checkpoint
from lightning_vision.classification.classifier import ImageClassifier
from lightning_vision.commands._folders import keep_existing
from lightning_vision.datamodules.common._answered import Answered
from lightning_vision.datamodules.common._answers import ANSWERS, INDEX, AnswerStore
from lightning_vision.datamodules.common._fingerprint import first_difference
from lightning_vision.datamodules.common._loader import ShardedLoader
from lightning_vision.datamodules.common._sets import Fetched, ImageSet
from lightning_vision.datamodules.common.datamodule import VisionDataModule

__all__ = ["begun", "file_digest", "filled", "read_teacher", "usable"]

# Batches between two moments at which what was answered is put on disk.
SAVED_EVERY = 50

# Of a batch with image and index: classes, values and sums over it, which the report is made of.
Answer = Callable[[dict[str, Any]], tuple[Tensor, Tensor, dict[str, float]]]


def usable(data: Any, done: str) -> VisionDataModule:
    """The command's datamodule, loaded.

    Args:
        data: What the user gave.
        done: What is done to it, for the errors, as `reinforced`.

    Raises:
        ValueError: it is none of this package, has answers already, no training images or several labels an image.
    """
    kind = type(data).__name__
    if not isinstance(data, VisionDataModule) or isinstance(data, Answered):
        raise ValueError(
            f"{kind} is not a datamodule that can be {done}; give one of this package, not one with a store itself"
        )
    data.prepare_data()
    data.setup()
    if data.train_set is None or data.multilabel:
        lack = "has several labels an image" if data.multilabel else "has no training images"
        raise ValueError(f"{kind} {lack}, so it cannot be {done}; give training images with one label each")
    return data


def read_teacher(path: str, data: VisionDataModule) -> ImageClassifier:
    """The classifier of a checkpoint, at rest.

    Raises:
        ValueError: it holds no classifier of these classes and channels with one label an image.
        FileNotFoundError: there is no such file.
    """
    module = module_from_checkpoint(path)
    if not isinstance(module, ImageClassifier) or module.multilabel:
        raise ValueError(
            f"{path} holds a {type(module).__name__}; a teacher is an ImageClassifier of one label an image"
        )
    for size in ("num_classes", "in_channels"):
        if (theirs := getattr(module, size)) != (ours := getattr(data, size)):
            raise ValueError(
                f"the teacher {path} has {size}={theirs} and {type(data).__name__} has {ours}; give a teacher of these "
                "images"
            )
    if module.preprocessing is not None and module.class_names != data.class_names:
        theirs, ours = shortened(module.class_names, 3), shortened(data.class_names, 3)
        raise ValueError(
            f"the teacher {path} was trained on the classes {theirs} and {type(data).__name__} has {ours}; give a "
            "teacher of these classes, in their order"
        )
    return module.eval().requires_grad_(False)


def file_digest(path: str) -> str:
    """What tells a file's content from others'."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def begun(folder: Path, wanted: dict[str, Any], overwrite: bool) -> AnswerStore:
    """The store in `folder`, made where there is none.

    Args:
        folder: Where it is.
        wanted: What its index must say.
        overwrite: Replace what is there.

    Raises:
        FileExistsError: another store is there and `overwrite` is off.
        ValueError: it is damaged, or another command made it.
    """
    if not overwrite and (folder / INDEX).exists():
        store = AnswerStore.read(folder, wanted["command"])
        index = {"command": store.command, **store.index}
        if other := [name for name, value in wanted.items() if first_difference(index, {name: value})]:
            raise FileExistsError(
                f"{folder} holds a store with other {' and '.join(other)}; choose another --output or add --overwrite"
            )
        return store
    keep_existing([folder / ANSWERS], overwrite)
    return AnswerStore.create(folder, {**wanted, "tallies": {}})


def filled(store: AnswerStore, data: VisionDataModule, device: torch.device, answer: Answer) -> None:
    """Fill the rows of the store that are still empty; what was answered is kept when it is interrupted.

    Args:
        store: Complete or not.
        data: Whose training images they are.
        device: Where images are sent.
        answer: Says of a batch what is stored of it.
    """
    if store.complete:
        return
    assert data.train_set is not None
    done = store.index["done"]
    tallies: dict[str, float] = dict(store.index["tallies"])
    loader = ShardedLoader(
        _Entries(data.train_set, done, store.rows - done),
        data.batch_size,
        num_workers=data.num_workers,
        multiprocessing_context=data.multiprocessing_context,
        pin_memory=device.type == "cuda",
        as_dict=True,
    )
    saved = tenth = done
    try:
        with torch.inference_mode():
            for batch in loader:
                assert isinstance(batch, dict)  # as asked
                classes, values, told = answer({**batch, "image": batch["image"].to(device)})
                store.write(batch["index"], classes.cpu(), values.cpu())
                rows = torch.arange(done, min(done + data.batch_size, store.rows))
                store.leave_out(rows[~torch.isin(rows, batch["index"])])
                tallies = {name: tallies.get(name, 0.0) + value for name, value in told.items()}
                done += len(rows)
                if done - saved >= SAVED_EVERY * data.batch_size or done == store.rows:
                    store.save(done, tallies=tallies)
                    saved = done
                if done - tenth >= store.rows / 10:
                    print(f"{done} of {store.rows} entries", flush=True)
                    tenth = done
    finally:
        if done > saved:
            store.save(done, tallies=tallies)
        loader.close()


class _Entries(ImageSet):
    """Entries of a training set from the first one on that has no answer.

    Args:
        images: The training set.
        first: Position of that entry.
        count: How many follow, itself included.
    """

    def __init__(self, images: ImageSet, first: int, count: int) -> None:
        self.images, self.first, self.count = images, first, count

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: Tensor, epoch: int = 0) -> Fetched:
        return self.images.fetch(index + self.first)
