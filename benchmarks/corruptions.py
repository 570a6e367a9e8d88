"""What it takes to corrupt an image, beside scikit-image, torchvision and kornia where they have the like."""

from collections.abc import Callable
from functools import partial

import kornia.augmentation as kornia
import numpy as np
import torch
from skimage.util import random_noise
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.robustness import corrupt_images
from lightning_vision.robustness.corruptions import CORRUPTION_FAMILIES

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

SIDE, SEVERITY = 224, 3

Change = Callable[[Tensor], Tensor]


def rows(quick: bool) -> list[Row]:
    """Four images of 224 x 224, or two of 32 x 32, at severity 3.

    Args:
        quick: One repetition on the small images.
    """
    number, side = (2, 32) if quick else (4, SIDE)
    photograph = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    images = torch.stack([photograph[:, 10 * i : 10 * i + side, 20 * i : 20 * i + side] for i in range(number)])
    rivals: dict[str, tuple[str, Change]] = {
        "gaussian_noise": ("scikit-image's `random_noise`", partial(_skimage, mode="gaussian", var=0.18**2)),
        "shot_noise": ("scikit-image's `random_noise`", partial(_skimage, mode="poisson")),
        "impulse_noise": ("scikit-image's `random_noise`", partial(_skimage, mode="s&p", amount=0.09)),
        "motion_blur": ("kornia's `RandomMotionBlur`", _kornias(kornia.RandomMotionBlur(31, 45.0, 0.5, p=1.0))),
        "fog": ("kornia's `RandomPlasmaBrightness`", _kornias(kornia.RandomPlasmaBrightness(p=1.0))),
        "elastic_transform": ("torchvision's `ElasticTransform`", partial(_each, v2.ElasticTransform(50.0, 2.24))),
        "jpeg_compression": ("torchvision's `JPEG`", partial(_each, v2.JPEG(15))),
    }
    # Each pair in its own turns, so that both meet the same moment of a busy machine.
    turns = (1, 0) if quick else (5, 1)
    compared = []
    for name, (against, theirs) in rivals.items():
        sides: dict[str, Side] = {"ours": partial(partial, corrupt_images, images, name, SEVERITY)}
        sides["theirs"] = partial(partial, theirs, images)
        cpu = {which: clocks["cpu"] for which, clocks in take_turns(sides, *turns).items()}
        compared.append(Row.slowdown(f"`{name}`", against, cpu["ours"], cpu["theirs"], "cpu"))
    families: dict[str, Side] = {
        f"{family}, an image": partial(partial, _all_of, images, names) for family, names in CORRUPTION_FAMILIES.items()
    }
    counts = [len(names) * number for names in CORRUPTION_FAMILIES.values()]
    timed = take_turns(families, *turns)
    return compared + [
        Row(what, "", [seconds / count for seconds in clocks["cpu"]], "cpu")
        for (what, clocks), count in zip(timed.items(), counts, strict=True)
    ]


def _all_of(images: Tensor, names: tuple[str, ...]) -> None:
    for name in names:
        corrupt_images(images, name, SEVERITY)


def _skimage(images: Tensor, **options: float | str) -> Tensor:
    """Image by image, as uint8 again."""
    found = [random_noise(image, rng=number, **options) for number, image in enumerate(images.numpy())]
    return torch.from_numpy((np.stack(found) * 255).round().astype(np.uint8))


def _kornias(change: Callable[[Tensor], Tensor]) -> Change:
    """kornia works on floats in 0..1."""
    return lambda images: change(images / 255).mul_(255).round_().clamp_(0, 255).byte()


def _each(transform: v2.Transform, images: Tensor) -> Tensor:
    return torch.stack([transform(image) for image in images])
