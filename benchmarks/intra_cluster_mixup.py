"""IntraClusterMixup of a batch of CIFAR's size against torchvision's MixUp, which asks nobody who is near."""

from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from lightning_vision.callbacks import IntraClusterMixup

from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]

CLASSES = 1000


def rows(quick: bool) -> list[Row]:
    """Mix (256, 3, 32, 32), float32, in ten clusters of pixels.

    Args:
        quick: One repetition with (8, 3, 32, 32).
    """
    size = 8 if quick else 256
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    random = np.random.default_rng(0)
    peer = v2.MixUp(alpha=1.0, num_classes=CLASSES)
    ours = {name: IntraClusterMixup(alpha=1.0, n_clusters=count) for name, count in (("ten", 10), ("one", 1))}
    for callback in ours.values():
        callback.prepared = torch.rand(callback.n_clusters, images[0].numel(), generator=generator)
    _assert_mixed(ours["one"].mix(images, ours["one"].draw(images.shape, random)).images, images)

    def mix(callback: IntraClusterMixup) -> object:
        return callback.change((images, labels), random)

    sides: dict[str, Side] = {name: lambda callback=callback: partial(mix, callback) for name, callback in ours.items()}
    sides["torchvision"] = lambda: partial(peer, images, labels)
    cpu = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (21, 2)).items()}
    return [
        Row.slowdown(
            "`IntraClusterMixup`, ten clusters of pixels", "torchvision", cpu["ten"], cpu["torchvision"], "cpu"
        ),
        Row.slowdown("`IntraClusterMixup`, one cluster", "torchvision", cpu["one"], cpu["torchvision"], "cpu"),
        Row.slowdown("`IntraClusterMixup`, ten clusters of pixels", "one cluster", cpu["ten"], cpu["one"], "cpu"),
    ]


def _assert_mixed(mixed: Tensor, images: Tensor) -> None:
    assert mixed.shape == images.shape and mixed.dtype == images.dtype and not torch.equal(mixed, images)
