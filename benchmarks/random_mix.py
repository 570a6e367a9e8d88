"""RandomMix of MixUp and CutMix, a batch of ImageNet's size, against timm's switch between the two."""

from functools import partial

import numpy as np
import torch
from timm.data import Mixup
from torchvision.transforms import v2

from lightning_vision.callbacks import CutMix, MixUp, RandomMix

from .mixing import CLASSES
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Mix (256, 3, 224, 224), float32, labels included; a turn is eight batches, so that both mixers come.

    Args:
        quick: One repetition with (8, 3, 32, 32).
    """
    size, pixels = (8, 32) if quick else (256, 224)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, pixels, pixels, generator=generator)
    labels = torch.randperm(CLASSES, generator=generator)[:size]
    ours, alone = RandomMix([MixUp(alpha=1.0), CutMix(alpha=1.0)]), MixUp(alpha=1.0)
    timms = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.0, num_classes=CLASSES)
    torchvisions = v2.RandomChoice([v2.MixUp(alpha=1.0, num_classes=CLASSES), v2.CutMix(num_classes=CLASSES)])
    # The same streams in every turn.
    drawn = [ours.draw(images.shape, np.random.default_rng(n)).mixer for n in range(8)]
    assert {0, 1} == set(drawn), drawn

    def eight(callback: MixUp | RandomMix) -> None:
        for n in range(8):
            mixed, _ = callback.change((images, labels), np.random.default_rng(n))
            assert mixed.shape == images.shape

    def eight_of_timm() -> None:
        np.random.seed(0)
        for _ in range(8):
            # timm mixes in place; mixing what is mixed takes as long.
            timms(images, labels)

    def eight_of_torchvision() -> None:
        torch.manual_seed(0)
        for _ in range(8):
            torchvisions(images, labels)

    sides: dict[str, Side] = {
        "ours": lambda: partial(eight, ours),
        "MixUp": lambda: partial(eight, alone),
        "timm": lambda: eight_of_timm,
        "torchvision": lambda: eight_of_torchvision,
    }
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (11, 1)).items()}
    return [
        Row.slowdown("`RandomMix` of `MixUp` and `CutMix`", "timm", cpu["ours"], cpu["timm"], "cpu", "<= 0.70"),
        Row.slowdown("`RandomMix` of `MixUp` and `CutMix`", "torchvision", cpu["ours"], cpu["torchvision"], "cpu"),
        Row.slowdown("`RandomMix` of `MixUp` and `CutMix`", "`MixUp` alone", cpu["ours"], cpu["MixUp"], "cpu"),
    ]
