"""What the recipes' networks cost beside those that torchvision builds: a forward and a training step.

Run by name, for building ten large networks takes its time.
"""

from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models

from .side_by_side import Row, Side, table, take_turns

__all__ = ["blocks"]

# Card, the recipe's network, torchvision's nearest one, side of the images in pixels.
PAIRS = (
    ("bit", "resnetv2_50x1_bit", models.resnet50, 128),
    ("resnet_rs", "resnetrs50", models.resnet50, 160),
    ("convnext", "convnext_tiny", models.convnext_tiny, 128),
    ("efficientnet_v2", "tf_efficientnetv2_s", models.efficientnet_v2_s, 128),
    ("inception_v4", "inception_v4", models.inception_v3, 299),
)
BATCH = 2


def blocks(quick: bool) -> dict[str, str]:
    """A table for each card, called `recipe_CARD`."""
    pairs = [pair for pair in PAIRS if pair[0] == "convnext"] if quick else PAIRS
    return {f"recipe_{card}": table(_rows(name, peer, side, 1 if quick else 5)) for card, name, peer, side in pairs}


def _rows(name: str, peer: Callable[..., nn.Module], side: int, repetitions: int) -> list[Row]:
    own = timm.create_model(name)
    # Without its auxiliary head Inception-v3 is what it is at evaluation.
    theirs = peer(aux_logits=False, init_weights=False) if peer is models.inception_v3 else peer()
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (own, theirs)]
    image = torch.randn(BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    label = torch.arange(BATCH)
    rows = []
    for what, side_of in (("forward", _forward), ("training step", _training_step)):
        sides = {"ours": side_of(own, image, label), "peer": side_of(theirs, image, label)}
        times = take_turns(sides, repetitions)
        rows.append(
            Row.slowdown(
                f"`{name}`, {counts[0] / 1e6:.1f} M parameters, {what} of {BATCH} images of {side} pixels",
                f"torchvision's `{peer.__name__}`, {counts[1] / 1e6:.1f} M",
                times["ours"]["cpu"],
                times["peer"]["cpu"],
                "cpu",
            )
        )
    return rows


def _forward(network: nn.Module, image: torch.Tensor, label: torch.Tensor) -> Side:
    def prepare() -> Callable[[], Any]:
        network.eval()

        def run() -> None:
            with torch.no_grad():
                network(image)

        return run

    return prepare


def _training_step(network: nn.Module, image: torch.Tensor, label: torch.Tensor) -> Side:
    def prepare() -> Callable[[], Any]:
        network.train().zero_grad()

        def run() -> None:
            F.cross_entropy(network(image), label).backward()

        return run

    return prepare
