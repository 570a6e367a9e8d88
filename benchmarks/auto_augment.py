"""AutoAugment and its successors on batches of ImageNet's size, against torchvision's, kornia's and timm's."""

import torch
from kornia.augmentation.auto import AutoAugment as KorniaAutoAugment
from PIL import Image
from sklearn.datasets import load_sample_images
from timm.data.auto_augment import auto_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.datamodules.augmentation import AugMix, AutoAugment, RandAugment, TrivialAugment, policy

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Augment (128, 3, 224, 224), uint8, cut out of two photographs.

    Args:
        quick: One repetition with (4, 3, 64, 64).
    """
    side, count, repetitions = (64, 4, 1) if quick else (224, 128, 9)
    images = _photographs(count, side)
    auto = policy("auto", (side, side))
    assert auto is not None
    crop = [v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]
    pairs = {
        "policy `auto`": (auto, v2.Compose([*crop, v2.AutoAugment()]), "<= 0.50"),
        "`AutoAugment`": (AutoAugment(), v2.AutoAugment(), "<= 0.50"),
        "`RandAugment`": (RandAugment(), v2.RandAugment(), ""),
        "`TrivialAugment`": (TrivialAugment(), v2.TrivialAugmentWide(), ""),
        "`AugMix`": (AugMix(), v2.AugMix(), ""),
    }
    sides: dict[str, Side] = {}
    for name, (ours, theirs, _) in pairs.items():
        sides[name] = lambda ours=ours: lambda: ours(images)
        sides[f"{name}, torchvision"] = lambda theirs=theirs: lambda: torch.stack([theirs(image) for image in images])
    kornia, floats = KorniaAutoAugment("imagenet"), images / 255
    timm = auto_augment_transform("original", {"img_mean": (0, 0, 0)})
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    sides["kornia"] = lambda: lambda: kornia(floats)
    sides["timm"] = lambda: lambda: [timm(picture) for picture in pictures]
    times = {name: clocks["cpu"] for name, clocks in take_turns(sides, repetitions).items()}
    what = f"({count}, 3, {side}, {side})"
    found = [
        Row.slowdown(
            f"{name}, {what}", "torchvision v2, image by image", times[name], times[f"{name}, torchvision"], "cpu", bar
        )
        for name, (*_, bar) in pairs.items()
    ]
    found += [
        Row.slowdown(f"`AutoAugment`, {what}", f"{peer}'s, {form}", times["`AutoAugment`"], times[peer], "cpu")
        for peer, form in (("kornia", "a float batch"), ("timm", "Pillow images"))
    ]
    return found


def _photographs(count: int, side: int) -> Tensor:
    """Windows of scikit-learn's two photographs, uint8 `(count, 3, side, side)`."""
    photographs = [torch.from_numpy(image.copy()).permute(2, 0, 1) for image in load_sample_images().images]
    tops, lefts = (torch.linspace(0, length - side, count).int().tolist() for length in photographs[0].shape[1:])
    windows = [
        photographs[number % 2][:, top : top + side, left : left + side]
        for number, (top, left) in enumerate(zip(tops, lefts, strict=True))
    ]
    return torch.stack(windows)
