"""What the benchmarks of MixUp and CutMix share: the batch, the turns and the rows."""

from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from lightning_vision.callbacks.hooks.targets import Targets

from .side_by_side import Row, Side, take_turns

__all__ = ["CLASSES", "mixing_rows"]

CLASSES = 1000
# Mixes a batch of images, float32 (B, 3, H, W), and labels, int64 (B,).
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixing_rows(name: str, batch: Targets, sample: Targets, peers: dict[str, Mix], quick: bool) -> list[Row]:
    """Time all that a callback does to a batch, labels included, against `peers`.

    Args:
        name: The callback's.
        batch: One that draws a share a batch.
        sample: The same with a share a sample.
        peers: By name; "torchvision" among them.
        quick: One repetition of a small batch.
    """
    size, pixels = (8, 32) if quick else (256, 224)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, pixels, pixels, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    random = np.random.default_rng(0)

    def ours(callback: Targets) -> Mix:
        return lambda image, label: callback.change((image, label), random)

    mixes = peers | {"batch": ours(batch), "sample": ours(sample)}
    for mix in mixes.values():
        _assert_mixed(*mix(images.clone(), labels), images)
    # A peer may work in place; mixing what is mixed takes as long.
    sides: dict[str, Side] = {side: lambda mix=mix: partial(mix, images, labels) for side, mix in mixes.items()}
    cpu = {side: clocks["cpu"] for side, clocks in take_turns(sides, *(1, 0) if quick else (21, 2)).items()}
    one, many = f"`{name}`, a share a batch", f"`{name}`, a share a sample"
    fastest, *others = sorted(peers, key=lambda peer: median(cpu[peer]))
    return [
        Row.slowdown(one, f"{fastest}, the fastest", cpu["batch"], cpu[fastest], "cpu", "<= 0.70"),
        *(Row.slowdown(one, peer, cpu["batch"], cpu[peer], "cpu") for peer in others),
        Row.slowdown(many, "torchvision, a share a batch", cpu["sample"], cpu["torchvision"], "cpu", "<= 1.00"),
    ]


def _assert_mixed(mixed: Tensor, target: Tensor, images: Tensor) -> None:
    """The images have changed and kept their form; labels are probabilities, or both labels with the share."""
    assert mixed.shape == images.shape and mixed.dtype == images.dtype and not torch.equal(mixed, images)
    if target.shape == (len(images), CLASSES):
        torch.testing.assert_close(target.sum(1), torch.ones(len(images)))
