"""What TrAct adds to a step, beside the authors' layer and beside a plain step."""

from functools import partial
from typing import Any

import timm
import torch_tract
from torch import nn

from lightning_vision.backbones import create
from lightning_vision.callbacks import TrAct

from .fits import Plain, batches_of, fitting
from .side_by_side import Row, take_turns

__all__ = ["rows"]


def rows(quick: bool) -> list[Row]:
    """Fits of ResNet-20 and of a ViT with patches of 4 pixels on random images of 32.

    Args:
        quick: One repetition of two steps.
    """
    found = []
    for what, make, theirs in (
        ("ResNet-20", partial(create, "resnet20_cifar", num_classes=10, in_channels=3), _first_convolution),
        ("ViT, patches of 4 pixels", _vit, _patches),
    ):
        batches = batches_of(8 if quick else 64, 2 if quick else 6)
        sides = {
            "plain": fitting(lambda make=make: Plain(make()), batches, 1),
            "authors": fitting(lambda make=make, theirs=theirs: Plain(theirs(make())), batches, 1),
            "ours": fitting(lambda make=make: Plain(make()), batches, 1, TrAct),
        }
        times = {name: clocks["cpu"] for name, clocks in take_turns(sides, *(1, 0) if quick else (9, 1)).items()}
        fit = f"a fit of {what} with `TrAct`"
        found += [
            Row.slowdown(
                fit, "the layer of `torch-tract` in its place", times["ours"], times["authors"], "cpu", "<= 1.02"
            ),
            Row.slowdown(fit, "without", times["ours"], times["plain"], "cpu"),
        ]
    return found


def _vit() -> nn.Module:
    model: nn.Module = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=96, depth=4, num_classes=10
    )
    return model


def _first_convolution(network: Any) -> nn.Module:
    network.stem[0] = torch_tract.TrAct(network.stem[0])
    return network


def _patches(network: Any) -> nn.Module:
    network.patch_embed.proj = torch_tract.TrAct(network.patch_embed.proj)
    return network
