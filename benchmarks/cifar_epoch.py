"""An epoch of CIFAR-10, cropped, flipped and normalised, against torchvision's transforms in a DataLoader."""

import pickle
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import numpy as np
import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from lightning_vision.datamodules import CIFAR10

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

BATCH = 128
FILES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
Batches = Iterable[tuple[Tensor, Tensor]]


class Unverified(torchvision.datasets.CIFAR10):
    """torchvision's dataset on files whose pixels are not CIFAR-10's."""

    train_list: ClassVar = [[name, None] for name in FILES[:5]]
    test_list: ClassVar = [[name, None] for name in FILES[5:]]
    meta: ClassVar = {"filename": "batches.meta", "key": "label_names", "md5": None}


def rows(quick: bool) -> list[Row]:
    """Iterate over an epoch of 50,000 images.

    Args:
        quick: One repetition with 1,000 images.
    """
    images, repetitions, warmup = (1_000, 1, 0) if quick else (50_000, 7, 1)
    with TemporaryDirectory() as folder:
        _write(Path(folder), images)
        augmented, plain = (CIFAR10(folder, 0.0, augment=augment, batch_size=BATCH) for augment in ("light", "none"))
        stock = partial(DataLoader, _stock(folder, augmented.mean, augmented.std), BATCH, shuffle=True)
        torch.manual_seed(0)
        _assert_alike(_ours(augmented), stock())
        sides: dict[str, Side] = {
            "0 workers": lambda: partial(_epoch, stock()),
            "2 workers": lambda: partial(_epoch, stock(num_workers=2)),
            "ours": lambda: partial(_epoch, _ours(augmented)),
            "floor": lambda: partial(_epoch, _ours(plain)),
        }
        wall = {name: clocks["wall"] for name, clocks in take_turns(sides, repetitions, warmup).items()}
    return [
        Row.speedup("`CIFAR10`", "torchvision, 0 workers", wall["ours"], wall["0 workers"], "wall", ">= 10"),
        Row.speedup("`CIFAR10`", "torchvision, 2 workers", wall["ours"], wall["2 workers"], "wall"),
        Row.speedup("`CIFAR10`", '`CIFAR10(augment="none")`', wall["ours"], wall["floor"], "wall"),
    ]


def _write(folder: Path, images: int) -> None:
    """Files as the authors of CIFAR-10 publish them: random pixels, the left half darker; `images` of them train."""
    files = folder / "cifar-10-batches-py"
    files.mkdir()
    pixels = np.random.default_rng(0)
    for name in FILES:
        count = images // 5
        data = pixels.integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
        data[..., :16] //= 2
        batch = {"data": data.reshape(count, -1), "labels": [k % 10 for k in range(count)]}
        (files / name).write_bytes(pickle.dumps(batch, protocol=2))
    (files / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(k) for k in range(10)]}, protocol=2))


def _stock(folder: str, mean: list[float], std: list[float]) -> Unverified:
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    return Unverified(
        folder, transform=transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    )


def _ours(datamodule: CIFAR10) -> Iterator[tuple[Tensor, Tensor]]:
    """What a Trainer does with the batches of `datamodule` in its first epoch."""
    for batch in datamodule.train_dataloader():
        image, target, index = datamodule.on_before_batch_transfer(batch, 0)
        yield datamodule.normalise(datamodule.augment(image, index, 0)), target


def _epoch(batches: Batches) -> None:
    for _ in batches:
        pass


def _assert_alike(*sides: Batches) -> None:
    """Both give float32 batches of equal mean and spread, equally often padded and mirrored."""
    firsts = [next(iter(side)) for side in sides]
    expected = torch.Size([BATCH, 3, 32, 32]), torch.float32, torch.int64
    assert all((image.shape, image.dtype, target.dtype) == expected for image, target in firsts)
    for measure, tolerance in ((torch.mean, 0.05), (torch.std, 0.05), (_padded, 0.05), (_mirrored, 0.25)):
        torch.testing.assert_close(*(measure(image) for image, _ in firsts), rtol=0, atol=tolerance)


def _padded(image: Tensor) -> Tensor:
    return (image == image.amin((0, 2, 3), keepdim=True)).float().mean()


def _mirrored(image: Tensor) -> Tensor:
    darker = image[..., :16].mean((1, 2, 3)) > image[..., 16:].mean((1, 2, 3))
    return darker.float().mean()
