"""What reinforced training costs beside plain training and beside a teacher that is asked in every step."""

import contextlib
import io
import tempfile
from functools import partial
from pathlib import Path

import timm
import torch
from lightning.pytorch import Trainer
from sklearn.datasets import load_sample_images
from torchvision.io import write_jpeg

from lightning_vision import ImageClassifier, main
from lightning_vision.datamodules import Digits, ImageFolder, Reinforced
from lightning_vision.datamodules.common.datamodule import VisionDataModule

from .fits import Online, Plain, an_epoch_of
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

ENTRIES, SIDE = 4, 64
DIGITS = ["--data", "Digits", "--data.shift", "1"]


def rows(quick: bool) -> list[Row]:
    """Fit for an epoch on digits in memory and on JPEG files; the teacher is as large as the student.

    Args:
        quick: One repetition, two steps, few files.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _tiles(root / "photos", 8 if quick else 160)
        photos = ImageFolder(root / "photos", SIDE, augment="strong", val_fraction=0, test_fraction=0)
        given = ["--data", "ImageFolder", "--data.root", str(root / "photos"), "--data.image_size", str(SIDE)]
        given += ["--data.augment", "strong", "--data.val_fraction", "0", "--data.test_fraction", "0"]
        return [
            *_rows("digits", Digits(shift=1), DIGITS, "resnet8_cifar", root / "digits", quick),
            *_rows(f"JPEG files, {SIDE} x {SIDE}, `strong`", photos, given, "resnet10t", root / "files", quick),
        ]


def _rows(what: str, data: VisionDataModule, given: list[str], network: str, folder: Path, quick: bool) -> list[Row]:
    """A side each for plain, reinforced and taught training on `data`, which `given` describes to the command."""
    known = min(5, data.num_classes)
    make = partial(timm.create_model, network, num_classes=data.num_classes, in_chans=data.in_channels)
    folder.mkdir()
    teacher, store = str(folder / "teacher.ckpt"), str(folder / "store")
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(ImageClassifier(network, data.num_classes, data.in_channels))
    trainer.save_checkpoint(teacher)
    flags = ["--trainer.accelerator", "cpu", "--trainer.logger", "false", "--overwrite", "--teacher", teacher]
    flags += ["--num_samples", str(ENTRIES), "--top_k", str(known), "--output", store]

    def reinforce() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return float(main(["reinforce", *given, *flags]).output["bytes_per_image"])

    size = reinforce()
    sides: dict[str, Side] = {
        "plain": an_epoch_of(lambda: Plain(make()), data, quick),
        "reinforced": an_epoch_of(lambda: Plain(make()), Reinforced(data, store), quick),
        "online": an_epoch_of(lambda: Online(make(), make()), data, quick),
        "once": lambda: reinforce,
    }
    repetitions, warmup = (1, 0) if quick else (7, 1)
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
    return [
        Row.slowdown(f"reinforced epoch, {what}", "plain epoch", cpu["reinforced"], cpu["plain"], "cpu", "<= 1.10"),
        Row.slowdown(f"reinforced epoch, {what}", "teacher in every step", cpu["reinforced"], cpu["online"], "cpu"),
        Row.slowdown(f"`reinforce`, {ENTRIES} entries, {what}", "plain epoch", cpu["once"], cpu["plain"], "cpu"),
        Row(f"store of 100,000 images like these, {ENTRIES} entries, {known} classes", "", [1e5 * size], "memory"),
    ]


def _tiles(root: Path, count: int) -> None:
    """`count` JPEG files a class, cut out of scikit-learn's two photographs."""
    for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir(parents=True)
        pixels = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
        for number in range(count):
            top, left = number * 7 % (pixels.shape[1] - 96), number * 29 % (pixels.shape[2] - 96)
            write_jpeg(pixels[:, top : top + 96, left : left + 96].contiguous(), str(root / name / f"{number}.jpg"))
