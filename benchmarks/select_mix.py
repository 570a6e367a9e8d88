"""SelectMix of a batch of ImageNet's size against timm's MixUp and a loop over samples, and its look at all digits."""

from functools import partial

import numpy as np
import torch
from lightning.pytorch import Trainer
from timm.data import Mixup
from torch import Tensor

from lightning_vision import backbones
from lightning_vision.callbacks import Doubt, SelectMix
from lightning_vision.datamodules import Digits

from .fits import Plain
from .mixing import CLASSES
from .side_by_side import Row, Side, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Mix (256, 3, 224, 224), float32, of which three in ten are in doubt; fit three epochs of digits, with one look.

    Args:
        quick: One repetition with (8, 3, 32, 32), and two steps an epoch.
    """
    size, pixels = (8, 32) if quick else (256, 224)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, 3, pixels, pixels, generator=generator)
    doubt = _doubt(size, generator)
    mix = SelectMix()
    mix.here = doubt.rows()
    timms = Mixup(mixup_alpha=1.0, mode="elem", label_smoothing=0.0, num_classes=CLASSES)

    def ours() -> Tensor:
        mixed = mix.mix(images, mix.draw(images.shape, np.random.default_rng(0))).images
        assert mixed.shape == images.shape
        return mixed

    def loop() -> Tensor:
        drawn, mixed = mix.draw(images.shape, np.random.default_rng(0)), images.clone()
        for i in doubt.uncertain.nonzero()[:, 0].tolist():
            given = bool(drawn.which[i] < doubt.keep[i])
            for own in (given, not given):
                wanted = int((doubt.given if own else doubt.predicted)[i])
                peers = [j for j in range(size) if bool(doubt.trusted[j]) and int(doubt.given[j]) == wanted]
                if peers:
                    mixed[i].lerp_(images[peers[int(drawn.pick[i] * len(peers))]], 1 - float(drawn.lam[i]))
                    break
        return mixed

    assert torch.allclose(ours(), loop(), atol=1e-6)
    make = partial(backbones.create, "resnet8_cifar", num_classes=10, in_channels=1)
    sides: dict[str, Side] = {
        "ours": lambda: ours,
        "loop": lambda: loop,
        "timm": lambda: partial(timms, images.clone(), torch.arange(size) % CLASSES),
        "plain": lambda: partial(_fit, Plain(make()), quick),
        "mixed": lambda: partial(_fit, Plain(make()), quick, SelectMix(network="network")),
    }
    cpu = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (7, 1)).items()}
    return [
        Row.slowdown("`SelectMix` of a batch", "timm's MixUp of it, a share a sample", cpu["ours"], cpu["timm"], "cpu"),
        Row.slowdown("`SelectMix` of a batch", "a loop over samples", cpu["ours"], cpu["loop"], "cpu"),
        Row.slowdown("three epochs of digits with one look", "without it", cpu["mixed"], cpu["plain"], "cpu"),
    ]


def _doubt(size: int, generator: torch.Generator) -> Doubt:
    """Ten classes, three samples in ten of which another is likelier."""
    given = torch.randint(10, (size,), generator=generator)
    uncertain = torch.rand(size, generator=generator) < 0.3
    predicted = torch.where(uncertain, (given + 1) % 10, given)
    keep = torch.rand(size, generator=generator).where(uncertain, 1.0)
    return Doubt(given, predicted, keep, uncertain, ~uncertain)


def _fit(module: Plain, quick: bool, *callbacks: SelectMix) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        limit_train_batches=2 if quick else 1.0,
        limit_val_batches=0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=Digits(batch_size=64))
