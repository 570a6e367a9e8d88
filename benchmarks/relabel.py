"""What pooling label maps costs beside a loop over images and beside whole maps, and training beside plain training."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import timm
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torchvision.ops import roi_align

from lightning_vision import ImageClassifier, main
from lightning_vision.datamodules import Digits, ReLabel, label_pooling, top_label_pooling, top_scores
from lightning_vision.datamodules.augmentation import ResizedCrop

from .fits import Online, Plain, an_epoch_of
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

# As the authors stored ImageNet: 15 x 15 cells of 1,000 classes, the five highest.
CLASSES, CELLS, KNOWN, SIZE = 1000, (15, 15), 5, (224, 224)
GIVEN = ["--data", "Digits", "--trainer.accelerator", "cpu", "--trainer.logger", "false", "--overwrite"]


def rows(quick: bool) -> list[Row]:
    """Pool the labels of a batch of ImageNet's size, and fit for an epoch on digits in memory.

    Args:
        quick: One repetition, small batches, two steps.
    """
    repetitions, warmup = (1, 0) if quick else (7, 1)
    batch = 4 if quick else 256
    pooled = take_turns(_pooling(batch), repetitions, warmup)
    with tempfile.TemporaryDirectory() as folder:
        sides, size = _training(Path(folder), quick)
        trained = take_turns(sides, repetitions, warmup)
    cpu = {name: clocks["cpu"] for name, clocks in (pooled | trained).items()}
    what = f"labels of {batch} crops, {CELLS[0]} x {CELLS[1]} cells, {KNOWN} of {CLASSES} classes"
    return [
        Row.speedup(what, "roi_align of one image after the other", cpu["stored"], cpu["loop"], "cpu", ">= 5"),
        Row.speedup(what, "roi_align of all maps at once", cpu["stored"], cpu["maps"], "cpu"),
        Row.slowdown("ReLabel, epoch of digits", "plain epoch", cpu["relabel"], cpu["plain"], "cpu", "<= 1.25"),
        Row.slowdown("ReLabel, epoch of digits", "teacher in every step", cpu["relabel"], cpu["online"], "cpu"),
        Row.slowdown("`relabel`, digits", "plain epoch", cpu["command"], cpu["plain"], "cpu"),
        Row("store of 100,000 such images, 2 x 2 cells, 5 classes", "", [1e5 * size], "memory"),
    ]


def _pooling(batch: int) -> dict[str, Side]:
    """A side each for the stored scores, a loop over images, and whole maps; the latter two make the maps first."""
    random = torch.Generator().manual_seed(0)
    classes, scores = top_scores(4 * torch.randn(batch, CLASSES, *CELLS, generator=random), KNOWN)
    uniform = torch.rand(batch, ResizedCrop.draws, generator=random)
    boxes = ResizedCrop().source_boxes(uniform, SIZE)

    def maps(number: slice) -> Tensor:
        shape = (len(classes[number]), CLASSES, *CELLS)
        return torch.zeros(shape).scatter_(1, classes[number].permute(0, 3, 1, 2), scores[number].permute(0, 3, 1, 2))

    def loop() -> Tensor:
        found = []
        for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
            across, down = sorted((left, right)), (top, bottom)
            corners = [across[0], down[0], across[1], down[1]]
            box = torch.tensor([[0, *(corner * CELLS[0] / SIZE[0] for corner in corners)]])
            found.append(roi_align(maps(slice(number, number + 1)), box, 1, aligned=True).flatten(1).softmax(1))
        return torch.cat(found)

    return {
        "stored": lambda: partial(top_label_pooling, classes, scores, boxes, SIZE, CLASSES),
        "loop": lambda: loop,
        "maps": lambda: lambda: label_pooling(maps(slice(None)), boxes, SIZE),
    }


def _training(folder: Path, quick: bool) -> tuple[dict[str, Side], float]:
    """A side each for plain, relabelled and taught training and for the command, and bytes of an image in the store."""
    make = partial(timm.create_model, "resnet8_cifar", num_classes=10, in_chans=1)
    data = partial(Digits, augment=ResizedCrop(scale=(0.5, 1.0), flip=False))
    teacher, store = str(folder / "teacher.ckpt"), str(folder / "store")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(ImageClassifier("resnet8_cifar", 10, 1))
    trainer.save_checkpoint(teacher)

    def relabel() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            asked = ["relabel", *GIVEN, "--teacher", teacher, "--output", store]
            return float(main(asked).output["bytes_per_image"])

    size = relabel()
    once: Callable[[], float] = relabel
    return {
        "plain": an_epoch_of(lambda: Plain(make()), data(), quick),
        "relabel": an_epoch_of(lambda: Plain(make()), ReLabel(data(), store), quick),
        "online": an_epoch_of(lambda: Online(make(), make()), data(), quick),
        "command": lambda: once,
    }, size
