"""Augmentation policies and single operations beside torchvision's v2 image by image, and kornia's for a batch."""

from collections.abc import Callable
from functools import partial

import kornia.augmentation as kornia
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import ColorJitter, RandomErasing, ResizedCrop, ShiftCrop, policy

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

Change = Callable[[Tensor], Tensor]
BARS = {"standard": "<= 0.60", "auto": "<= 0.50"}


def rows(quick: bool) -> list[Row]:
    """Augment a batch of photographs, uint8 (128, 3, 224, 224).

    Args:
        quick: One repetition with 16 images of 64 x 64.
    """
    count, side = (16, 64) if quick else (128, 224)
    images = _photographs(count, side)
    torch.manual_seed(0)  # both sides draw from the global stream, and few images may differ by chance
    crop = [v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]
    pairs: dict[str, tuple[Change, v2.Transform]] = {
        "`standard`": (_named("standard", side), v2.Compose([*crop, v2.ColorJitter(0.4, 0.4, 0.4)])),
        "`auto`": (_named("auto", side), v2.Compose([*crop, v2.AutoAugment()])),
        "`strong`": (_named("strong", side), v2.Compose([*crop, v2.RandAugment(2, 9), v2.RandomErasing(0.25)])),
        "`light`": (
            _named("light", side),
            v2.Compose([v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip()]),
        ),
        "`ResizedCrop`": (ResizedCrop(side), v2.Compose(crop)),
        "`ColorJitter`": (ColorJitter(0.4, 0.4, 0.4), v2.ColorJitter(0.4, 0.4, 0.4)),
        "`RandomErasing`": (RandomErasing(), v2.RandomErasing()),
        "`ShiftCrop`": (ShiftCrop(padding=side // 8), v2.RandomCrop(side, padding=side // 8)),
    }
    changes: dict[str, Change] = {"kornia": _kornias_standard(side)}
    for name, (ours, theirs) in pairs.items():
        changes |= {name: ours, f"torchvision's {name}": partial(_one_by_one, theirs)}
        _assert_alike(ours(images), _one_by_one(theirs, images))
    _assert_alike(changes["`standard`"](images), changes["kornia"](images))
    sides: dict[str, Side] = {name: lambda change=change: partial(change, images) for name, change in changes.items()}
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
    against = "torchvision v2, image by image"
    compared = [
        Row.slowdown(name, against, cpu[name], cpu[f"torchvision's {name}"], "cpu", BARS.get(name.strip("`"), ""))
        for name in pairs
    ]
    return [*compared, Row.slowdown("`standard`", "kornia, a batch", cpu["`standard`"], cpu["kornia"], "cpu")]


def _photographs(count: int, side: int) -> Tensor:
    """Windows of scikit-learn's photograph of a temple, uint8 `(count, 3, side, side)`."""
    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    windows = photograph.unfold(1, side, 10).unfold(2, side, 10).permute(1, 2, 0, 3, 4).flatten(0, 1)
    return windows[torch.linspace(0, len(windows) - 1, count).long()].contiguous()


def _named(name: str, side: int) -> Change:
    augmentation = policy(name, (side, side))
    assert augmentation is not None
    return augmentation


def _one_by_one(transform: v2.Transform, images: Tensor) -> Tensor:
    return torch.stack([transform(image) for image in images])


def _kornias_standard(side: int) -> Change:
    """kornia works on floats in 0..1 and has a draw for each image of a batch."""
    steps = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((side, side), resample="bilinear", align_corners=False),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(0.4, 0.4, 0.4),
        same_on_batch=False,
    )
    return lambda images: steps(images / 255).mul_(255)


def _assert_alike(ours: Tensor, theirs: Tensor) -> None:
    """Batches of one form whose pixels have the same mean and spread; draws differ, and photographs are one picture."""
    assert ours.shape == theirs.shape
    for measure in (torch.mean, torch.std):
        torch.testing.assert_close(measure(ours.float()), measure(theirs.float()), rtol=0, atol=25)
